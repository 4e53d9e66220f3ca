"""`--resolution`: the size of the input as one more gene of chamnet, on networks small enough to try every size."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnx_netadapt as na
import onnxruntime
import pytest
from net import Net
from onnx_netadapt import cli
from onnx_netadapt.data import load_data
from onnx_netadapt.distill import Distillation, distill
from onnx_netadapt.ir import load
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import reshaped
from onnx_netadapt.options import Options
from onnx_netadapt.passes.images import augmented
from onnx_netadapt.passes.search import chamnet
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress
from onnx_netadapt.resolution import InputSize, data_at, own_size, parse_resolution, resized, sizes_below
from onnx_netadapt.stages import RESOLUTION

EXAMPLES = 120
OWN = 24
OPTIONS = {"search": "chamnet", "resolution": "8..24:8", "finetune": "none", "published": True}
"""Published: no finalists, so that a run takes seconds."""


def convolutional(path, *, head="pool", sides=(OWN, OWN), dynamic=False, last=False):
    """A net of three convolutions and a head, and inputs that are smooth, so that smaller ones still tell much."""
    net = Net(seed=1)
    shape = (1, *sides, 3) if last else (1, 3, *sides)
    x = net.input(*shape)
    start = net.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    made = net.op("Relu", net.conv(start, 3, 8, kernel=(3, 3), pads=[1] * 4))
    made = net.op("Relu", net.conv(made, 8, 12, kernel=(3, 3), pads=[1] * 4, strides=[2, 2]))
    made = net.op("Relu", net.conv(made, 12, 16, kernel=(3, 3), pads=[1] * 4, strides=[2, 2]))
    if head == "map":
        net.output(net.conv(made, 16, 5))
    elif head == "fixed":
        flat = net.op("Flatten", made)
        net.output(net.op("Gemm", flat, net.weight(6, 16 * sides[0] * sides[1] // 16), net.weight(6), transB=1))
    else:
        flat = net.op("Flatten", net.op("GlobalAveragePool", made))
        net.output(net.op("Gemm", flat, net.weight(6, 16), net.weight(6), transB=1))
    model = net.model()
    if dynamic:
        for place in (1, 2) if last else (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"
    onnx.save(model, path)
    data = path.with_suffix(".npz")
    rng = np.random.default_rng(2)
    coarse = rng.standard_normal((EXAMPLES, 3, sides[0] // 4, sides[1] // 4)).repeat(4, axis=2).repeat(4, axis=3)
    tones = rng.standard_normal((EXAMPLES, 3, 1, 1)) + 0.7 * coarse
    images = (tones + 0.1 * rng.standard_normal((EXAMPLES, 3, *sides))).astype(np.float32)
    np.savez(data, x0=images.transpose(0, 2, 3, 1) if last else images)
    return str(path), str(data)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Samples enough to go through all of the search, not to be good at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chamnet, "START", 16)
        patch.setattr(chamnet, "ROUNDS", 2)
        patch.setattr(chamnet, "POPULATION", 32)
        patch.setattr(chamnet, "evolve", partial(chamnet.evolve, generations=20))
        patch.setitem(chamnet.search.__kwdefaults__, "samples", 24)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model with an input of fixed size, and its data."""
    return convolutional(tmp_path_factory.mktemp("static") / "net.onnx")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The model whose height and width are open."""
    return convolutional(tmp_path_factory.mktemp("dynamic") / "net.onnx", dynamic=True)


@pytest.fixture(scope="module")
def bench(files):
    """Everything up to the search; nothing depends on a clock."""
    options = Options(budgets=("macs=0.3x",), data=files[1], min_keep=0.5, **OPTIONS)
    return set_up(files[0], options, "net", Progress(quiet=True), "")


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """One run of the command line for a budget that widths alone cannot meet."""
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    arguments = ["adapt", files[0], "--budget", "macs=0.15x", "--data", files[1], "-o", str(output), "--quiet"]
    arguments += ["--search", "chamnet", "--resolution", "8..24:8", "--finetune", "none", "--min-keep", "0.7"]
    return cli._run(arguments), output


def _run(path, shape):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.zeros(shape, np.float32)})[0].shape


def test_a_budget_out_of_reach_of_widths_is_met_by_the_size_of_the_input(adapted):
    code, output = adapted
    report = json.loads(output.with_suffix(".report.json").read_text())
    assert code == 0
    assert report["met"]
    assert report["after"]["macs"] <= 0.15 * report["before"]["macs"]
    told = report["resolution"]
    height, width = told["after"]
    assert height == width < OWN
    assert (told["input"], told["before"], told["fixed"]) == ("x0", [OWN, OWN], True)
    assert told["candidates"] == [[24, 24], [16, 16], [8, 8]]
    assert RESOLUTION not in report["widths"]
    assert report["history"][-1]["widths"][RESOLUTION] == height
    model = onnx.load(output)
    onnx.checker.check_model(model, full_check=True)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:] == [3, height, width]
    assert _run(output, (2, 3, height, width)) == (2, 6)
    with pytest.raises(Exception, match="invalid dimensions"):
        _run(output, (1, 3, OWN, OWN))


def test_the_reports_for_people_tell_the_size(files, adapted, capsys):
    page = adapted[1].with_suffix(".report.html").read_text()
    side = json.loads(adapted[1].with_suffix(".report.json").read_text())["resolution"]["after"][0]
    assert f"24x24 -&gt; {side}x{side}" in page


def test_verify_takes_the_size_from_the_plan(files, adapted, tmp_path, capsys):
    arguments = ["verify", files[0], str(adapted[1])]
    assert cli._run(arguments) == 0
    assert cli._run([*arguments, "--data", files[1]]) == 0
    plan = json.loads(adapted[1].with_suffix(".plan.json").read_text())
    assert plan["input"]["name"] == "x0"
    del plan["input"]
    (tmp_path / "wrong.json").write_text(json.dumps(plan))
    with pytest.raises(Exception, match="invalid dimensions"):
        na.verify(files[0], adapted[1], plan)


def test_the_same_seed_gives_the_same_plan_twice(files):
    options = OPTIONS | {"data": files[1], "min_keep": 0.5}
    first, second = (na.adapt(files[0], "macs=0.3x", **options).report for _ in range(2))
    assert first.plan == second.plan
    assert first.widths == second.widths
    assert first.resolution == second.resolution
    assert first.met


def test_an_open_input_stays_open_and_the_report_says_what_to_feed(opened):
    found = na.adapt(opened[0], "macs=0.15x", data=opened[1], min_keep=0.7, **OPTIONS)
    side = found.report.resolution["after"][0]
    assert found.report.met
    assert side < OWN
    assert not found.report.resolution["fixed"]
    assert f"feed {side}x{side}" in str(found.report)
    assert list(found.model.graph.input) == list(onnx.load(opened[0]).graph.input)
    assert found.report.after.macs <= 0.15 * found.report.before.macs


@pytest.mark.slow
def test_a_latency_budget_is_relative_to_the_original_at_its_own_size(files):
    found = na.adapt(files[0], "0.6x", data=files[1], min_keep=0.5, **OPTIONS)
    assert found.report.met
    (budget,) = found.report.budgets
    assert budget["limit"] == pytest.approx(0.6 * found.report.before.latency_ms["median"])
    assert found.report.after.latency_ms["median"] <= budget["limit"]


@pytest.mark.slow
def test_finalists_and_training_run_at_the_size_that_was_chosen(files):
    options = OPTIONS | {"published": False, "finetune": "steps=4,check_every=2"}
    found = na.adapt(files[0], "macs=0.3x", data=files[1], min_keep=0.5, **options)
    assert found.report.met
    assert found.report.finetune["history"][-1]["step"] == 4
    assert found.report.seconds["finalists"] > 0
    side = found.report.resolution["after"][0]
    assert found.model.graph.input[0].type.tensor_type.shape.dim[2].dim_value == side


@pytest.mark.parametrize("augment", [False, True])
def test_training_aims_at_the_outputs_of_the_original_at_its_own_size(files, bench, augment):
    """The whole network at a smaller input starts as its own original: only the larger original can teach it more."""
    (stage,) = [stage for stage in bench.stages if stage.size.resolution == 16]
    run = replace(stage.run, options=replace(bench.run.options, finetune=f"steps=30,augment={int(augment)}"))
    graph = stage.run.graph
    start = stage.evaluator.score(graph.model)
    task = Distillation(graph.model, (graph.model, start), lambda model: model, (), graph.model, start)
    model, told = distill(run, task, stage.evaluator, lambda *_: None)
    alone, _ = distill(replace(run, original=None), task, stage.evaluator, lambda *_: None)
    assert told["improved"]
    assert stage.evaluator.score(model) - start > 2 * (stage.evaluator.score(alone) - start)


def test_views_of_two_sizes_are_of_the_same_part_of_the_image():
    rng = np.random.default_rng(3)
    coarse = np.kron(rng.standard_normal((5, 3, 4, 4)), np.ones((8, 8))).astype(np.float32)
    small = resized(coarse, InputSize("x", (1, 3, 16, 16), (2, 3)))
    views, others = (augmented(images, np.random.default_rng(7)) for images in (coarse, small))
    again = resized(views, InputSize("x", (1, 3, 16, 16), (2, 3)))
    assert np.corrcoef(again.ravel(), others.ravel())[0, 1] > 0.95
    assert np.corrcoef(again.ravel(), small.ravel())[0, 1] < 0.8


def test_scores_and_costs_at_every_size_refer_to_the_original_at_its_own(bench):
    assert [stage.size.resolution for stage in bench.stages] == [24, 16, 8]
    (choice,) = [choice for choice in bench.choices if choice.apart]
    assert choice.id == RESOLUTION
    assert choice.widths == (8, 16, 24)
    full = bench.narrowing.full
    assert bench.scorer(full) == pytest.approx(0.0, abs=1e-6)
    assert bench.scorer(full | {RESOLUTION: 24}) == bench.scorer(full)
    scores = [bench.scorer(full | {RESOLUTION: side}) for side in (24, 16, 8)]
    assert scores[0] > scores[1] > scores[2]  # none is the original's own: it is compared with the larger one
    macs = [bench.cost(full | {RESOLUTION: side})["macs"] for side in (24, 16, 8)]
    assert macs[1] == pytest.approx(macs[0] * (16 / 24) ** 2, rel=1e-2)
    assert macs[2] == pytest.approx(macs[0] * (8 / 24) ** 2, rel=1e-2)  # the head's own product stays
    assert dict(bench.limits(bench.run.budgets)) == {"macs": pytest.approx(0.3 * macs[0])}
    networks = [full | {RESOLUTION: side} for side in (8, 24, 16, 8)]
    assert bench.scorer.many(networks) == [bench.scorer(widths) for widths in networks]
    assert bench.cost.many(networks) == [bench.cost(widths) for widths in networks]


def test_the_score_at_a_size_is_that_of_the_original_on_resized_examples(files, bench):
    session = onnxruntime.InferenceSession(files[0], providers=["CPUExecutionProvider"])
    small = onnxruntime.InferenceSession(
        reshaped(load(files[0]), "x0", (1, 3, 16, 16)).model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = np.load(files[1])["x0"][bench.scorer.evaluator.indices]
    size = InputSize("x0", (1, 3, 16, 16), (2, 3))
    (given,), (other,) = session.run(None, {"x0": images}), small.run(None, {"x0": resized(images, size)})
    p, q = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in (given, other))
    wanted = -(np.exp(p) * (p - q)).sum(axis=1).mean()
    assert bench.scorer(bench.narrowing.full | {RESOLUTION: 16}) == pytest.approx(wanted, rel=1e-4)


def test_error_curves_have_the_size_as_one_more_group(bench):
    share = bench.narrowing.curves[RESOLUTION]
    assert share[24] == 0.0
    assert 0.0 < share[16] < share[8] <= 1.0


@pytest.mark.parametrize("last", [False, True])
def test_channels_may_come_last_and_sides_may_differ(tmp_path, last):
    path, data = convolutional(tmp_path / "net.onnx", sides=(24, 48), last=last)
    options = Options(budgets=("macs=0.5x",), data=data, **OPTIONS)
    found = set_up(path, options, "net", Progress(quiet=True), "")
    assert [stage.size.sides for stage in found.stages] == [(24, 48), (16, 32), (8, 16)]
    macs = [found.cost(found.narrowing.full | {RESOLUTION: side})["macs"] for side in (24, 8)]
    assert macs[1] == pytest.approx(macs[0] / 9, rel=1e-2)


def test_a_head_of_fixed_positions_is_refused_with_the_reason_and_what_to_do(tmp_path, capsys):
    path, data = convolutional(tmp_path / "net.onnx", head="fixed")
    arguments = ["adapt", path, "--budget", "0.5x", "--data", data, "--quiet"]
    assert cli._run([*arguments, "--search", "chamnet", "--resolution", "8..24:8"]) == 2
    told = capsys.readouterr().err
    assert "works at its own size 24x24 only: at 16x16, it cannot run" in told
    assert "Leave --resolution out, or export the model with a head that pools globally" in told
    assert not (tmp_path / "net.adapted.onnx").exists()


def test_an_output_that_grows_with_the_input_is_refused(tmp_path):
    path, data = convolutional(tmp_path / "net.onnx", head="map", dynamic=True)
    with pytest.raises(InputError, match=r"output '\w+' has shape \[1, 5, 4, 4\] there, and \[1, 5, 6, 6\] as it is"):
        na.adapt(path, "macs=0.5x", data=data, **OPTIONS)


def test_a_size_that_cannot_run_is_left_out_with_a_warning(tmp_path):
    net = Net(seed=1)
    x = net.op("Relu", net.conv(net.input(1, 3, 24, 24), 3, 8, kernel=(11, 11)))
    pooled = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv(x, 8, 8))))
    onnx.save(net.output(pooled).model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "net.npz", x0=np.random.default_rng(0).standard_normal((EXAMPLES, 3, 24, 24)).astype("f4"))
    options = Options(budgets=("macs=0.5x",), data=str(tmp_path / "net.npz"), **OPTIONS)
    found = set_up(tmp_path / "net.onnx", options, "net", Progress(quiet=True), "")
    assert [stage.size.sides for stage in found.stages] == [(24, 24), (16, 16)]
    assert any("an input of 8x8 is left out: it cannot run" in warning for warning in found.run.warnings)


@pytest.mark.parametrize("search", ["netadapt", "mcd", "multiplier"])
def test_other_searches_refuse_it(files, search, capsys):
    arguments = ["adapt", files[0], "--budget", "0.5x", "--data", files[1], "--quiet", "--search", search]
    assert cli._run([*arguments, "--resolution", "8..24:8"]) == 2
    assert "use --search chamnet" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["96", "96-224", "a..b", "224..96", "97..120", "0..64", "96..224:0", "96..224:x"])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="write a range such as"):
        parse_resolution(text)


def test_ranges_are_snapped_to_the_step_and_end_below_the_models_own_size():
    assert list(parse_resolution("100..200").sides) == [128, 160, 192]
    assert list(parse_resolution("96..224:64").sides) == [128, 192]
    own = InputSize("x", (1, 3, 224, 320), (2, 3))
    sizes = sizes_below(own, parse_resolution("150..400"))
    assert [size.sides for size in sizes] == [(160, 224), (192, 288)]
    with pytest.raises(InputError, match="below the model's own, 224x320"):
        sizes_below(own, parse_resolution("224..256"))


@pytest.mark.parametrize("text", ["128..99999999999999", "99999999999999..999999999999999"])
def test_ranges_of_any_length_are_no_work(text):
    own = InputSize("image", (1, 3, 160, 160), (2, 3))
    if text.startswith("128"):
        assert [size.resolution for size in sizes_below(own, parse_resolution(text))] == [128]
    else:
        with pytest.raises(InputError, match="below the model's own"):
            sizes_below(own, parse_resolution(text))


def test_models_without_one_image_are_refused():
    net = Net()
    net.output(net.dense(net.input(1, 4), 4, 2))
    with pytest.raises(InputError, match="has 0 inputs that could be images"):
        own_size(load(net.model()), parse_resolution("96..224"))


@pytest.mark.parametrize(("axes", "dtype"), [((2, 3), np.float32), ((1, 2), np.float16), ((2, 3), np.uint8)])
def test_numbers_are_resized_as_images_are(axes, dtype):
    from PIL import Image

    planes = np.random.default_rng(0).integers(0, 256, (2, 3, 10, 14)).astype(dtype)
    array = planes if axes == (2, 3) else planes.transpose(0, 2, 3, 1)
    shape = (1, 3, 5, 7) if axes == (2, 3) else (1, 5, 7, 3)
    found = resized(array, InputSize("x", shape, axes))
    assert found.dtype == dtype
    assert found.shape == (2, *shape[1:])
    image = Image.fromarray(planes[1, 2].astype(np.uint8)).resize((7, 5), Image.Resampling.BILINEAR)
    plane = found[1, 2] if axes == (2, 3) else found[1, ..., 2]
    np.testing.assert_allclose(plane.astype(np.float64), np.asarray(image), atol=1.0)
    same = resized(array, InputSize("x", (1, *array.shape[1:]), axes))
    np.testing.assert_array_equal(same, array)


def test_images_are_made_anew_at_each_size(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for place in range(3):
        pixels = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    inputs = {"x": (("n", 3, 32, 32), np.float32)}
    recipe = "mean=0.5,std=0.2,crop=0.9"
    small = data_at(load_data(str(tmp_path), inputs, recipe), InputSize("x", (1, 3, 16, 16), (2, 3)))
    wanted = load_data(str(tmp_path), {"x": (("n", 3, 16, 16), np.float32)}, recipe)
    indices = np.array([2, 0])
    np.testing.assert_array_equal(small.read(indices)["x"], wanted.read(indices)["x"])
    stacked = np.stack([np.asarray(Image.open(tmp_path / f"{place}.png")) for place in range(3)])
    np.savez(tmp_path / "images.npz", x=stacked)
    arrays = data_at(load_data(str(tmp_path / "images.npz"), inputs, recipe), InputSize("x", (1, 3, 16, 16), (2, 3)))
    np.testing.assert_array_equal(arrays.read(indices)["x"], wanted.read(indices)["x"])
