"""`--downsample`: a model that makes its image smaller itself, chosen by score or asked for."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_netadapt as na
import onnxruntime
import pytest
from net import Net
from onnx_netadapt import cli, downsampling
from onnx_netadapt.ir import load
from onnx_netadapt.ir.downsample import downsampled
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import reshaped
from onnx_netadapt.options import Options
from onnx_netadapt.pipeline import set_up
from onnx_netadapt.progress import Progress
from onnx_netadapt.resolution import InputSize, parse_downsample, sizes_inside
from onnx_netadapt.stages import RESOLUTION

OWN = 32
EXAMPLES = 120
QUICK = {"finetune": "none", "min_keep": 0.5}


def classifier(path, *, texture=False, last=False, head="pool", dynamic=False):
    """Three convolutions and a head over images that are smooth, or, with `texture`, told apart by single pixels."""
    net = Net(seed=1)
    x = net.input(1, OWN, OWN, 3) if last else net.input(1, 3, OWN, OWN)
    made = net.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    if texture:
        edge = np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32)
        weights = net.weight(8, 3, 3, 3)
        tensor = next(item for item in net.tensors if item.name == weights)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.tile(edge, (8, 3, 1, 1)).astype(np.float32), weights))
        made = net.op("Relu", net.op("Conv", made, weights, pads=[1] * 4))
    else:
        made = net.op("Relu", net.conv(made, 3, 8, kernel=(3, 3), pads=[1] * 4))
    made = net.op("Relu", net.conv(made, 8, 12, kernel=(3, 3), pads=[1] * 4))
    made = net.op("Relu", net.conv(made, 12, 16, kernel=(3, 3), pads=[1] * 4, strides=[2, 2]))
    if head == "map":
        net.output(net.conv(made, 16, 5))
    else:
        flat = net.op("Flatten", net.op("GlobalAveragePool", made))
        net.output(net.op("Gemm", flat, net.weight(6, 16), net.weight(6), transB=1))
    model = net.model()
    if dynamic:
        for place in (2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = f"side{place}"
    onnx.save(model, path)
    rng = np.random.default_rng(2)
    images = rng.standard_normal((EXAMPLES, 3, 4, 4)).repeat(8, axis=2).repeat(8, axis=3)
    images = 0.7 * images + rng.standard_normal((EXAMPLES, 3, 1, 1))
    if texture:
        board = np.indices((OWN, OWN)).sum(axis=0) % 2 * 2 - 1
        images = 0.1 * images + board * rng.uniform(0, 1, (EXAMPLES, 1, 1, 1))
    images = images.astype(np.float32)
    data = path.with_suffix(".npz")
    np.savez(data, x0=images.transpose(0, 2, 3, 1) if last else images)
    return str(path), str(data)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Images small enough for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downsampling, "LEAST_SIDE", OWN)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model for smooth images, and its data."""
    return classifier(tmp_path_factory.mktemp("smooth") / "net.onnx")


@pytest.fixture(scope="module")
def adapted(files, tmp_path_factory):
    """One run of the command line."""
    output = tmp_path_factory.mktemp("out") / "small.onnx"
    arguments = ["adapt", files[0], "--budget", "macs=0.4x", "--data", files[1], "-o", str(output), "--quiet"]
    assert cli._run([*arguments, "--finetune", "none", "--min-keep", "0.5"]) == 0
    return output


def _logits(model, images):
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.parametrize("sides", [(24, 24), (20, 28), (31, 17)])
def test_the_model_gives_what_it_gave_for_the_image_made_smaller_outside(files, sides):
    torch = pytest.importorskip("torch")
    graph = load(files[0])
    images = np.load(files[1])["x0"][:1]
    small = torch.nn.functional.interpolate(torch.from_numpy(images), sides, mode="bilinear", align_corners=False)
    wanted = _logits(reshaped(graph, "x0", (1, 3, *sides)).model, small.numpy())
    np.testing.assert_allclose(_logits(downsampled(graph, "x0", (2, 3), sides).model, images), wanted, atol=1e-4)


def test_every_side_is_met_whatever_the_rounding(files):
    """Runtimes round length x scale down in single precision, where side / length may fall short by one."""
    from onnx_netadapt.ir.downsample import _factor

    lengths = np.array([(length, side) for length in range(2, 400) for side in range(1, length)])
    found = np.array([int(np.float32(length) * _factor(length, side)) for length, side in lengths])
    np.testing.assert_array_equal(found, lengths[:, 1])
    short = [int(np.float32(length) * np.float32(side / length)) < side for length, side in lengths]
    assert any(short)  # the plain quotient would not do


def test_the_size_wins_where_images_are_smooth_and_the_input_stays(files, adapted):
    report = json.loads(adapted.with_suffix(".report.json").read_text())
    told = report["resolution"]
    assert report["met"]
    assert report["after"]["macs"] <= 0.4 * report["before"]["macs"]
    assert told["inside"]
    assert told["before"] == [OWN, OWN]
    assert OWN // 2 <= told["after"][0] < OWN
    assert "by the model itself, which is fed 32x32 as before" in told["said"]
    model = onnx.load(adapted)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0] == onnx.load(files[0]).graph.input[0]
    images = np.load(files[1])["x0"][:1]
    assert _logits(adapted, images).shape == _logits(files[0], images).shape


def test_what_it_keeps_is_more_than_widths_alone_do(files, adapted):
    report = json.loads(adapted.with_suffix(".report.json").read_text())
    narrow = na.adapt(files[0], "macs=0.4x", data=files[1], downsample="never", **QUICK).report
    assert narrow.resolution is None
    assert max(report["recovery"]["scores"].values()) > max(narrow.recovery["scores"].values())


def test_verify_builds_the_smaller_image_from_the_plan(files, adapted):
    arguments = ["verify", files[0], str(adapted)]
    assert cli._run(arguments) == 0
    assert cli._run([*arguments, "--data", files[1]]) == 0
    plan = json.loads(adapted.with_suffix(".plan.json").read_text())
    assert plan["input"]["inside"]
    wrong = plan | {"input": plan["input"] | {"shape": [1, 3, 8, 8]}}
    assert not na.verify(files[0], adapted, wrong).passed
    without = {name: value for name, value in plan.items() if name != "input"}
    assert not na.verify(files[0], adapted, without).passed


@pytest.mark.parametrize("shape", [[1, 3, 0, 0], [1, 3, -4, 16], [1, 3, 10**9, 10**9], [1, 3, "a", 8]])
def test_a_plan_with_a_size_that_cannot_be_is_refused(files, adapted, shape):
    plan = json.loads(adapted.with_suffix(".plan.json").read_text())
    plan["input"]["shape"] = shape
    with pytest.raises(InputError, match="the plan has the model make its image"):
        na.verify(files[0], adapted, plan)


def test_images_told_apart_by_single_pixels_stay_as_they_are(tmp_path):
    path, data = classifier(tmp_path / "net.onnx", texture=True)
    found = na.adapt(path, "macs=0.4x", data=data, **QUICK)
    assert found.report.met
    assert found.report.resolution is None
    assert "Resize" not in {node.op_type for node in found.model.graph.node}


@pytest.mark.parametrize("extra", [{"downsample": "never"}, {"published": True}, {"search": "mcd"}])
def test_who_asks_for_something_else_gets_that(files, extra):
    bench = set_up(files[0], Options(("macs=0.4x",), data=files[1], **extra), "net", Progress(quiet=True), "")
    assert [stage.size for stage in bench.stages] == [None]


def test_small_images_stay_as_they_are(files, monkeypatch):
    monkeypatch.setattr(downsampling, "LEAST_SIDE", OWN + 1)
    bench = set_up(files[0], Options(("macs=0.4x",), data=files[1]), "net", Progress(quiet=True), "")
    assert len(bench.stages) == 1


def test_made_up_images_do_not_decide_a_size(files):
    bench = set_up(files[0], Options(("macs=0.4x",)), "net", Progress(quiet=True), "")
    assert len(bench.stages) == 1


@pytest.mark.parametrize(
    "search", ["netadapt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mcd", "multiplier"))]
)
def test_a_size_that_is_asked_for_is_taken_by_every_search(files, search):
    found = na.adapt(files[0], "macs=0.3x", data=files[1], downsample="24", search=search, published=True, **QUICK)
    assert found.report.met
    assert found.report.resolution["after"] == [24, 24]
    assert found.report.after.macs <= 0.3 * found.report.before.macs


@pytest.mark.slow
def test_the_same_seed_gives_the_same_plan_twice(files):
    first, second = (na.adapt(files[0], "macs=0.4x", data=files[1], **QUICK).report for _ in range(2))
    assert first.plan == second.plan


@pytest.mark.slow
def test_the_same_table_gives_the_same_choice_for_a_latency(files, tmp_path, monkeypatch):
    options = Options(("0.6x",), data=files[1], lut=tmp_path / "t.lut", **QUICK)
    first = set_up(files[0], options, "net", Progress(quiet=True), "")

    def refuse(*arguments, **keywords):
        raise AssertionError("measured again")

    monkeypatch.setattr(downsampling, "ROUNDS", SimpleNamespace(against=refuse))
    second = set_up(files[0], options, "net", Progress(quiet=True), "")
    assert [stage.size for stage in first.stages] == [stage.size for stage in second.stages]


def test_a_resumed_run_keeps_the_size_that_it_had(files, tmp_path, monkeypatch):
    output = tmp_path / "small.onnx"
    options = {"data": files[1], "output": output, "downsample": "auto", **QUICK}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("onnx_netadapt.pipeline.settle", killed)
        with pytest.raises(KeyboardInterrupt):
            na.adapt(files[0], "macs=0.2x", **options)
    (journal,) = tmp_path.glob("*.journal.jsonl")
    past = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    side = past[-1]["step"]["widths"][RESOLUTION] if "step" in past[-1] else past[-1]["widths"][RESOLUTION]
    monkeypatch.setattr("onnx_netadapt.downsampling._automatic", killed)  # it is not chosen again
    found = na.adapt(files[0], "macs=0.2x", resume=True, **options)
    assert found.report.resolution["after"] == [side, side]


@pytest.mark.slow
def test_many_budgets_keep_the_image_as_it_is(files, tmp_path):
    found = na.adapt_each(files[0], ["macs=0.8x", "macs=0.5x"], data=files[1], output=tmp_path / "o.onnx", **QUICK)
    assert all("Resize" not in {node.op_type for node in model.graph.node} for model in found.models)


@pytest.mark.slow
def test_training_goes_through_the_smaller_image(files):
    found = na.adapt(files[0], "macs=0.4x", data=files[1], downsample="24", finetune="steps=4,check_every=2")
    assert found.report.finetune["history"][-1]["step"] == 4


@pytest.mark.slow
def test_channels_may_come_last(tmp_path):
    path, data = classifier(tmp_path / "net.onnx", last=True)
    found = na.adapt(path, "macs=0.5x", data=data, downsample="24", **QUICK)
    assert found.report.resolution["after"] == [24, 24]
    assert found.report.met


@pytest.mark.parametrize(
    ("kind", "side", "told"),
    [
        ({}, "32", "must be below the model's own size, 32x32"),
        ({"head": "map"}, "24", "has shape"),
        ({"dynamic": True}, "24", "no input that is one image of fixed size"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_the_reason(tmp_path, kind, side, told):
    path, data = classifier(tmp_path / "net.onnx", **kind)
    with pytest.raises(InputError, match=told):
        na.adapt(path, "macs=0.5x", data=data, downsample=side, **QUICK)


@pytest.mark.parametrize(("opset", "last"), [(9, False), (9, True), (11, False), (12, False), (13, False), (18, True)])
def test_every_opset_and_layout_gives_the_same_smaller_image(tmp_path, opset, last):
    torch = pytest.importorskip("torch")
    path, data = classifier(tmp_path / "net.onnx", last=last)
    model = onnx.load(path)
    model.opset_import[0].version = opset
    model.ir_version = 6
    graph, images = load(model), np.load(data)["x0"][:1]
    axes, shape = ((1, 2), (1, 20, 26, 3)) if last else ((2, 3), (1, 3, 20, 26))
    first = torch.from_numpy(images.transpose(0, 3, 1, 2) if last else images)
    small = torch.nn.functional.interpolate(first, (20, 26), mode="bilinear", align_corners=False).numpy()
    wanted = _logits(
        reshaped(graph, "x0", shape).model, np.ascontiguousarray(small.transpose(0, 2, 3, 1)) if last else small
    )
    found = downsampled(graph, "x0", axes, (20, 26))
    np.testing.assert_allclose(_logits(found.model, images), wanted, atol=1e-4)
    assert {"Resize"} & {node.op_type for node in found.model.graph.node} == ({"Resize"} if opset >= 11 else set())


def test_an_old_model_is_adapted_trained_and_verified(tmp_path):
    path, data = classifier(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.opset_import[0].version = 9
    model.ir_version = 6
    onnx.save(model, path)
    output = tmp_path / "o.onnx"
    options = {"data": data, "output": output, "downsample": "24", "finetune": "steps=2,check_every=1"}
    report = na.adapt(path, "macs=0.4x", **options).report
    assert report.met
    assert report.finetune["history"][-1]["step"] == 2
    assert na.verify(path, output, report.plan).passed
    wrong = report.plan | {"input": dict(report.plan["input"]) | {"shape": [1, 3, 16, 16]}}
    assert not na.verify(path, output, wrong).passed


def test_an_image_of_integers_is_not_interpolated(tmp_path):
    net = Net()
    x = net.input(1, 3, 32, 32)
    net.output(net.conv(net.op("Cast", x, to=1), 3, 4))
    model = net.model()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    with pytest.raises(InputError, match="holds uint8, and only floats"):
        downsampled(load(model), "x0", (2, 3), (24, 24))


@pytest.mark.parametrize("text", ["small", "-3", "0", "1.5"])
def test_words_that_mean_nothing_are_refused(text):
    with pytest.raises(InputError, match="write auto, never, or"):
        parse_downsample(text)


def test_it_does_not_go_with_other_ways_to_choose_a_size():
    with pytest.raises(InputError, match="does not go with"):
        Options(("0.5x",), search="chamnet", resolution="8..24:8", downsample="16")


def test_sizes_are_whole_for_networks_that_halve_their_maps():
    def sides(height, width):
        return [size.sides for size in sizes_inside(InputSize("x", (1, 3, height, width), (2, 3)))]

    assert [side for side, _ in sides(224, 224)] == [112, 128, 144, 160, 176, 192, 208]
    assert [side for side, _ in sides(32, 32)] == list(range(16, 32, 2))
    assert sides(64, 128)[:2] == [(32, 64), (36, 72)]
    assert all(size.inside for size in sizes_inside(InputSize("x", (1, 3, 32, 32), (2, 3))))
