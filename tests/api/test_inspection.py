"""`inspect`: a page that can be read, largest first, and the same facts with `--json`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_netadapt as na
import pytest
from net import Net
from onnx_netadapt import cli
from onnx_netadapt.inspection_text import GROUPS, WIDTH, clipped

SHARED = Path(__file__).resolve().parents[3] / "shared" / "models"
REAL = [
    "det_yolox_nano", "seg_road_adas_tf2onnx", "vit_cifar10_ibp_3_3_8", "rnn_pointhistory_lstm_pinto",
    "derived_qdq_cifar10_resnet20", "facedet_retinaface_mnet25_mxnet",
]  # fmt: skip


def held() -> onnx.ModelProto:
    """A wide group, a narrow one, and a normalization that holds what stands between them."""
    net = Net(open_batch=False)
    x = net.dense(net.op("Relu", net.dense(net.input(4, 3), 3, 64)), 64, 16)
    x = net.op("Softmax", x)
    x = net.dense(net.op("Relu", net.dense(x, 16, 5)), 5, 16)
    return net.output(net.dense(net.op("Softmax", x), 16, 2)).model()


def test_groups_come_with_the_largest_first_and_shares() -> None:
    found = na.inspect(held())
    assert [group["units"] for group in found.groups] == [64, 5]
    text = str(found)
    assert text.index("    g0     64 ") < text.index("    g1      5 ")
    params = 3 * 64 + 64 * 16 + 16 * 5 + 5 * 16 + 16 * 2
    assert found.totals["params"] == params
    assert found.groups[0]["share_params"] == pytest.approx((3 * 64 + 64 * 16) / params)


def test_every_barrier_has_node_operator_reason_and_share_and_repeats_are_one_entry() -> None:
    found = na.inspect(held())
    reasons = [(row["axis"], row["node"], row["op_type"], row["reason"]) for row in found.barriers]
    softmax = "Softmax mixes all channels of this axis"
    assert reasons == [
        (0, "x0", "", "an input of the model"),
        (1, "Softmax3", "Softmax", softmax),
        (0, "Softmax3", "Softmax", softmax),
        (1, "Softmax7", "Softmax", softmax),
        (0, "Softmax7", "Softmax", softmax),
        (1, "t8", "", "an output of the model"),
    ]
    assert all(0 < row["share_params"] < 1 for row in found.barriers)
    text = str(found)
    assert text.count(softmax) == 1
    assert "4 weights: Softmax mixes all channels of this axis [Softmax Softmax3 and 1 more]" in text


def test_the_missing_share_is_named() -> None:
    """Of the weights one is held along both axes, all others along one."""
    found = na.inspect(held())
    held_twice, total = 16 * 2, 3 * 64 + 64 * 16 + 16 * 5 + 5 * 16 + 16 * 2
    expected = {"params": total, "all_axes": 0.0, "some_axes": 1 - held_twice / total, "no_axis": held_twice / total}
    assert found.weights == pytest.approx(expected)
    assert f"{1 - held_twice / total:.1%} along some" in str(found)


def test_json_has_the_same_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(held(), tmp_path / "m.onnx")
    assert cli._run(["inspect", str(tmp_path / "m.onnx"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    found = na.inspect(tmp_path / "m.onnx")
    assert told["schema_version"] == 1
    assert told["groups"] == [dict(group) for group in found.groups]
    assert told["barriers"] == [dict(barrier) for barrier in found.barriers]
    assert told["problem"] is None
    documented = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    names = [*told, *told["totals"], *told["weights"], *told["groups"][0], *told["barriers"][0]]
    assert [name for name in names if f"`{name}" not in documented and f"{name}," not in documented] == []


def test_many_groups_are_summed_up() -> None:
    net = Net(open_batch=False)
    x = net.input(4, 3)
    for number in range(GROUPS + 9):
        x = net.op("Relu", net.dense(x, 3 if number == 0 else number + 2, number + 3))
    found = na.inspect(net.output(net.dense(x, GROUPS + 11, 2)).model())
    lines = str(found).splitlines()
    assert len(found.groups) == GROUPS + 9
    assert any(line.startswith("  and 9 more groups with at most ") for line in lines)
    assert len(lines) < GROUPS + 20


def test_a_model_that_does_not_run_is_shown_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = held()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "m.onnx")
    assert cli._run(["inspect", str(tmp_path / "m.onnx")]) == 4
    out, err = capsys.readouterr()
    assert "operator Mystery of domain 'com.example' has no rule" in out
    assert "Mystery" in err
    assert err.count("\n") == 1


def test_channels_of_a_layer_normalization_show_when_asked_for() -> None:
    net = Net(open_batch=False)
    x = net.op("LayerNormalization", net.dense(net.input(4, 3), 3, 8), net.positive(8))
    model = net.output(net.dense(x, 8, 2)).model()
    assert na.inspect(model).groups == ()
    assert [group["units"] for group in na.inspect(model, renormalize=True).groups] == [8]


def test_long_names_keep_their_end() -> None:
    assert clipped("model/block/conv", 9) == "…ock/conv"
    assert clipped("conv", 9) == "conv"


@pytest.mark.parametrize("name", REAL)
def test_real_models_fit_on_a_page(name: str) -> None:
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} of the shared models is not here")
    found = na.inspect(path)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= max(WIDTH, len(lines[0]))
    assert len(lines) < 80
    assert np.isclose(found.weights["all_axes"] + found.weights["some_axes"] + found.weights["no_axis"], 1.0)
