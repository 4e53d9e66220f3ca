"""`train-elastic` and what is cut from its result, on the network and data that come with the package."""

import json

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from onnx_netadapt import cli
from onnx_netadapt.elastic_record import KEY, read_record
from onnx_netadapt.ir.errors import InputError
from onnx_netadapt.ir.load import load

ONLY = ("g1", "g3", "g5")
FLAGS = [flag for name in ONLY for flag in ("--only", name)]
TRAINING = "steps=12,batch=16,threads=1,check_every=6,precision=float32,seconds=inf"


def initializers(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def changed(model, **entries):
    """A copy of the model with other values in its elastic record."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for entry in found.metadata_props:
        if entry.key == KEY:
            entry.value = json.dumps(json.loads(entry.value) | entries)
    return found


@pytest.fixture(scope="module")
def made(little, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "d.elastic.onnx"
    found = na.train_elastic(little[0], little[1], output=output, only=ONLY, finetune=TRAINING, metric="kl")
    return found, output


@pytest.fixture(scope="module")
def cut(made, little):
    return na.adapt(made[1], "macs=0.8x", data=little[1])


def test_the_file_is_the_model_with_other_weights_and_a_record(made, little):
    found, output = made
    original = onnx.load(little[0])
    onnx.checker.check_model(found.model, full_check=True)
    assert output.read_bytes() == found.model.SerializeToString(deterministic=True)
    assert {path.name for path in output.parent.iterdir()} == {"d.elastic.onnx", "d.elastic.json"}
    assert [node.SerializeToString() for node in found.model.graph.node] == [
        node.SerializeToString() for node in original.graph.node
    ]
    old, new = initializers(original), initializers(found.model)
    assert {name: array.shape for name, array in old.items()} == {name: array.shape for name, array in new.items()}
    assert any((old[name] != new[name]).any() for name in old)
    assert {entry.key for entry in found.model.metadata_props} - {KEY} == {e.key for e in original.metadata_props}


def test_the_record_is_a_nested_order_of_every_group_and_stands_in_the_json_too(made):
    found, output = made
    told = json.loads(output.with_name("d.elastic.json").read_text())
    assert told["schema_version"] == 1
    assert told["record"] == json.loads(next(e.value for e in found.model.metadata_props if e.key == KEY))
    record = read_record(load(output))
    assert set(ONLY) < set(record.order)
    for name, order in record.order.items():
        np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))
        assert record.least[name] == (len(order) // 4 if name in ONLY else len(order))
    assert told["record"]["groups"]["g1"]["order"] == record.order["g1"].tolist()


def test_the_report_says_what_is_cut_from_it_beside_what_is_cut_from_the_original(made):
    report = made[0].report
    points = {round(point.macs, 2): point for point in report.points}
    assert max(points) == 1.0
    smallest = points[min(points)]
    assert smallest.after > smallest.before
    assert report.training["best_step"] > 0
    assert f"macs={smallest.macs:.2f}x" in str(report)


def test_a_later_budget_is_cut_without_training_or_a_refit(made, cut):
    report = cut.report
    assert report.met
    assert report.after.macs <= 0.8 * report.before.macs
    assert report.search["elastic"] is True
    assert list(report.recovery["scores"]) == ["sliced"]
    assert report.finetune["said"] == "none"
    assert {"statistics", "finetune", "finalists"}.isdisjoint(report.seconds)
    order = read_record(load(made[1])).order
    taken = initializers(made[0].model)
    for group in report.plan["groups"]:
        assert sorted(group["kept"]) == sorted(order[group["id"]][: report.widths[group["id"]]].tolist())
        for member in group["members"]:
            taken[member["tensor"]] = np.delete(taken[member["tensor"]], member["removed"], axis=member["axis"])
    for name, array in initializers(cut.model).items():
        np.testing.assert_array_equal(array, taken[name])


def test_a_cut_is_the_same_every_time_and_not_elastic_itself(made, cut, little):
    again = na.adapt(made[1], "macs=0.8x", data=little[1], elastic=True)
    assert again.model.SerializeToString(deterministic=True) == cut.model.SerializeToString(deterministic=True)
    assert KEY not in {entry.key for entry in cut.model.metadata_props}
    assert read_record(load(cut.model)) is None


def test_many_budgets_and_masked_scoring_cut_as_well(made, little):
    found = na.adapt_each(made[1], ["macs=0.9x", "macs=0.7x"], data=little[1], scoring="masked")
    assert found.pareto.met
    wide, narrow = (row.macs for row in found.pareto.rows)
    assert narrow < wide


def test_no_width_goes_below_the_least_that_was_trained(made, little):
    with pytest.raises(na.NetAdaptError, match="smallest"):
        na.adapt(made[1], "macs=0.05x", data=little[1])


def test_training_a_cut_further_is_possible_when_it_is_asked_for(made, little):
    report = na.adapt(made[1], "macs=0.8x", data=little[1], finetune="steps=2,batch=8,threads=1,seconds=inf").report
    assert report.finetune["images"] == 16


def test_without_elastic_it_is_a_model_as_any_other(made, little):
    options = {"only": ("g5",), "min_keep": 0.5, "published": True, "finetune": "none"}
    report = na.adapt(made[1], "params=0.95x", data=little[1], elastic=False, **options).report
    assert report.search["elastic"] is False
    assert "closed form" in report.recovery["scores"]


def test_prune_keeps_the_first_units_of_the_order(made):
    pruned = na.prune(made[1], keep=0.5)
    order = read_record(load(made[1])).order
    for group in pruned.plan["groups"]:
        assert sorted(group["kept"]) == sorted(order[group["id"]][: group["units"] // 2].tolist())
    assert KEY not in {entry.key for entry in pruned.model.metadata_props}


def test_a_model_that_was_changed_afterwards_is_refused(made, little):
    other = onnx.ModelProto()
    other.CopyFrom(made[0].model)
    weight = other.graph.initializer[0]
    array = onnx.numpy_helper.to_array(weight).copy()
    array.reshape(-1)[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    with pytest.raises(InputError, match=r"changed after it was trained.*--no-elastic"):
        na.adapt(other, "macs=0.8x", data=little[1])
    other.CopyFrom(made[0].model)
    other.graph.node.add(op_type="Relu", input=[other.graph.output[0].name], output=["more"])
    with pytest.raises(InputError, match="changed after it was trained"):
        na.prune(other, keep=0.5)


def test_names_and_remarks_may_change(made):
    other = onnx.ModelProto()
    other.CopyFrom(made[0].model)
    other.doc_string, other.graph.node[0].name = "remarks", "first"
    other.metadata_props.add(key="author", value="somebody")
    assert read_record(load(other)) is not None


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"schema_version": 2}, "has schema 2"),
        ({"groups": 3}, "cannot be read"),
        ({"groups": {"g1": {"order": [1, 0], "least": 1, "error": [1, 0, 0]}}}, "units for group"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(made, little, entries, said):
    with pytest.raises(InputError, match=said):
        na.adapt(changed(made[0].model, **entries), "macs=0.8x", data=little[1])


def test_elastic_asked_of_a_model_that_is_not_is_refused(little):
    with pytest.raises(InputError, match="train-elastic"):
        na.adapt(little[0], "macs=0.8x", data=little[1], elastic=True)


def test_depth_is_refused_where_no_network_without_a_branch_was_trained(made, little):
    with pytest.raises(InputError, match="--no-elastic"):
        na.adapt(made[1], "macs=0.8x", data=little[1], allow_depth=True)


def test_another_size_of_the_image_is_refused_as_well(made, little):
    with pytest.raises(InputError, match=r"--downsample: .*--no-elastic"):
        na.adapt(made[1], "macs=0.8x", data=little[1], downsample="8")


def test_the_command_line_prints_json_and_keeps_progress_apart(little, tmp_path, capsys):
    out = tmp_path / "e.onnx"
    wanted = ["train-elastic", little[0], "--data", little[1], "-o", str(out), "--finetune", TRAINING, *FLAGS, "--json"]
    assert cli._run(wanted) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(out.with_name("e.elastic.json").read_text())
    assert "training for every width" in said.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--data"),
        (["--data", "{data}", "--finetune", "none"], "nothing was written"),
        (["--data", "{data}", "--finetune", "steps=2,lr=1e9,batch=8,seconds=inf"], "nothing was written"),
        (["--data", "{data}", "--min-keep", "0"], "--min-keep"),
    ],
)
def test_what_cannot_be_trained_gives_exit_code_2_and_no_file(little, tmp_path, capsys, options, said):
    out = tmp_path / "e.onnx"
    given = [text.format(data=little[1]) for text in options]
    assert cli._run(["train-elastic", little[0], "-o", str(out), "--quiet", *FLAGS, *given]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_that_masks_do_not_fit_is_refused(tmp_path, capsys):
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        mixed (float[N, 5] x) => (float[N, 3] y) {
            h = MatMul(x, a)
            r = Relu(h)
            g = MatMul(r, b)
            m = ReduceMean<axes = [0], keepdims = 1>(g)
            s = Add(g, m)
            y = MatMul(s, c)
        }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in (("a", (5, 7)), ("b", (7, 11)), ("c", (11, 3))):
        weight = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((64, 5)).astype(np.float32))
    given = [str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--quiet"]
    assert cli._run(["train-elastic", *given]) == 2
    assert "train-elastic: " in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "d.npz"}
