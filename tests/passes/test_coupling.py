"""Coupling: what belongs together in the structures that networks are made of, known in advance for each."""

from __future__ import annotations

import numpy as np
import pytest
from net import Net
from onnx_netadapt.ir import load
from onnx_netadapt.passes.coupling import Coupling, couple
from onnx_netadapt.passes.prune import prune


def coupled(net: Net) -> Coupling:
    return couple(load(net.model(), shapes=net.shapes))


def sizes(coupling: Coupling) -> list[int]:
    return sorted(group.units for group in coupling.groups)


def residual(net: Net) -> Net:
    """A stem and two blocks on one stream of 7 channels; each block has 5 of its own."""
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    for _ in range(2):
        x = net.op("Add", x, net.conv(net.op("Relu", net.conv(x, 7, 5)), 5, 7))
    return net.output(net.conv(x, 7, 13))


def test_a_residual_stream_is_one_group() -> None:
    coupling = coupled(residual(Net()))
    assert sizes(coupling) == [5, 5, 7]
    stream = next(group for group in coupling.groups if group.units == 7)
    assert sum(axis[0].startswith("c") for axis in stream.axes) == 3 * 2 + 3  # weights and biases in, weights out


def test_branches_that_are_concatenated_are_groups_of_their_own() -> None:
    net = Net()
    x = net.input(2, 3, 5, 11)
    y = net.op("Concat", net.conv(x, 3, 4), net.conv(x, 3, 7), net.conv(x, 3, 5), axis=1)
    coupling = coupled(net.output(net.conv(net.op("Relu", y), 16, 13)))
    assert sizes(coupling) == [4, 5, 7]
    whole = next(axis for axis in coupling.groups[0].axes if axis[0] == "t3")
    units = coupling.layers[whole][0]
    assert [coupling.groups[coupling.unit_group[unit]].units for unit in units] == [4] * 4 + [7] * 7 + [5] * 5


def test_a_channel_shuffle_keeps_groups_and_places_apart() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 5, 11), 3, 15)
    y = net.op("Transpose", net.op("Reshape", x, net.ints(0, 3, 5, 5, 11)), perm=[0, 2, 1, 3, 4])
    coupling = coupled(net.output(net.conv(net.op("Reshape", y, net.ints(0, 15, 5, 11)), 15, 13)))
    assert sizes(coupling) == [3, 5]
    removed = coupling.removed_units({next(g.id for g in coupling.groups if g.units == 5): [0, 1, 3, 4]})
    before, after = (~coupling.positions(axis, removed) for axis in (("c0", 0), ("c4", 1)))
    assert np.flatnonzero(before).tolist() == [2, 7, 12]  # row-major (3, 5): place 2 of every group
    assert np.flatnonzero(after).tolist() == [6, 7, 8]  # row-major (5, 3)


def test_a_padded_shortcut_leaves_the_new_channels_free() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(2, 3, 6, 8), 3, 7))
    shorter = net.op("Slice", x, net.ints(0, 0), net.ints(9, 9), net.ints(2, 3), net.ints(2, 2))
    shortcut = net.op("Pad", shorter, net.ints(0, 2, 0, 0, 0, 3, 0, 0))
    wide = net.conv(x, 7, 12, strides=[2, 2])
    coupling = coupled(net.output(net.conv(net.op("Add", shortcut, wide), 12, 13)))
    assert sizes(coupling) == [5, 7]


def test_heads_and_widths_are_two_ways_to_cut_the_same_rows() -> None:
    net = Net()
    x = net.dense(net.input(2, 5, 3), 3, 21)
    y = net.op("Transpose", net.op("Reshape", x, net.ints(0, 0, 3, 7)), perm=[0, 2, 1, 3])
    y = net.op("Softmax", y, axis=2)
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(0, 0, -1))
    coupling = coupled(net.output(net.dense(y, 21, 13)))
    heads, width = sorted(coupling.groups, key=lambda group: group.units)
    assert (heads.units, width.units) == (3, 7)
    kept = {heads.id: np.array([0, 2]), width.id: np.array([1, 2, 5])}
    rows = np.flatnonzero(coupling.positions(("c0", 1), coupling.removed_units(kept)))
    assert rows.tolist() == [1, 2, 5, 15, 16, 19]


def test_small_shared_constants_do_not_tie_their_users_together() -> None:
    net = Net()
    bias = net.const(np.zeros(7), np.float32)
    x = net.op("Relu", net.op("Conv", net.input(2, 3, 5, 11), net.weight(7, 3, 1, 1), bias))
    y = net.op("Relu", net.op("Conv", x, net.weight(7, 7, 1, 1), bias))
    assert sizes(coupled(net.output(net.conv(y, 7, 13)))) == [7, 7]


def test_shared_weights_tie_their_users_together() -> None:
    net = Net()
    w = net.weight(7, 7)
    x = net.dense(net.input(2, 3), 3, 7)
    for _ in range(2):
        x = net.op("MatMul", net.op("Relu", x), w)
    assert sizes(coupled(net.output(net.dense(x, 7, 13)))) == [7]


def test_inputs_and_outputs_of_the_model_are_barriers_with_reasons() -> None:
    coupling = coupled(residual(Net()))
    reasons = {(barrier.tensor, barrier.axis): barrier.reason for barrier in coupling.barriers}
    assert reasons == {("c0", 1): "an input of the model", ("c10", 0): "an output of the model"}


def test_a_barrier_names_the_node_and_operator_that_hold_the_channels() -> None:
    net = Net()
    x = net.op("Relu", net.dense(net.input(2, 5, 3), 3, 7))
    coupling = coupled(net.output(net.dense(net.op("LayerNormalization", x, net.positive(7)), 7, 13)))
    held = next(barrier for barrier in coupling.barriers if barrier.tensor == "c0" and barrier.axis == 1)
    assert (held.node, held.op_type) == ("LayerNormalization2", "LayerNormalization")
    assert "mixes all channels" in held.reason


def test_an_operator_without_a_rule_holds_its_channels() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    net.output(net.conv(x, 7, 13))
    model = net.model()
    node = model.graph.node.add(op_type="Mystery", domain="com.example", input=[x], output=["m"])
    assert node.op_type == "Mystery"
    model.opset_import.add(domain="com.example", version=1)
    coupling = couple(load(model, shapes=net.shapes))
    assert coupling.groups == ()
    assert any("Mystery" in barrier.reason and "com.example" in barrier.reason for barrier in coupling.barriers)


def test_weights_behind_a_dequantization_have_their_barriers_too() -> None:
    net = Net()
    stored = net.const(net.rng.integers(-99, 99, (7, 3, 1, 1)), np.int8)
    weight = net.op("DequantizeLinear", stored, net.const(0.01, np.float32), net.const(0, np.int8))
    x = net.op("LRN", net.op("Conv", net.input(2, 3, 5, 11), weight), size=3)
    coupling = coupled(net.output(net.conv(x, 7, 13)))
    reasons = {(barrier.tensor, barrier.axis): barrier.reason for barrier in coupling.barriers}
    assert reasons[weight, 0] == "LRN mixes neighbouring channels"


def test_the_matrix_of_an_operator_without_a_rule_has_a_barrier() -> None:
    net = Net()
    x, matrix = net.conv(net.input(2, 3, 5, 11), 3, 7), net.weight(7, 5)
    net.output(net.conv(x, 7, 13))
    model = net.model()
    model.graph.node.add(op_type="Mystery", domain="com.example", input=[x, matrix], output=["m"])
    model.opset_import.add(domain="com.example", version=1)
    coupling = couple(load(model, shapes=net.shapes))
    assert any(barrier.tensor == matrix and "Mystery" in barrier.reason for barrier in coupling.barriers)


def test_a_channel_that_is_all_of_an_axis_stays() -> None:
    """Two maps of one channel side by side: dropping one would leave nothing to put there."""
    net = Net()
    x = net.input(2, 3, 5, 11)
    y = net.op("Concat", net.conv(x, 3, 1), net.conv(x, 3, 1), axis=1)
    coupling = coupled(net.output(net.conv(y, 2, 13)))
    assert coupling.groups == ()
    assert any("only position" in barrier.reason for barrier in coupling.barriers)


def test_reshapes_that_do_not_nest_are_barriers() -> None:
    net = Net()
    x = net.op("Reshape", net.dense(net.input(2, 6, 3), 3, 4), net.ints(0, 4, 6))
    coupling = coupled(net.output(net.dense(x, 6, 13)))
    assert sizes(coupling) == []
    assert any("reshape mixes" in barrier.reason for barrier in coupling.barriers)


def test_a_tensor_that_is_an_output_too_keeps_its_channels() -> None:
    net = Net()
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    assert sizes(coupled(net.output(x, net.conv(x, 7, 13)))) == []


def test_group_ids_and_their_order_are_the_same_for_one_file() -> None:
    first, second = (coupled(residual(Net())) for _ in range(2))
    assert [(g.id, g.units, g.axes) for g in first.groups] == [(g.id, g.units, g.axes) for g in second.groups]


@pytest.mark.parametrize("nodes", [100, 1000])
def test_a_deep_network_is_no_deep_recursion(nodes: int) -> None:
    """A dynamic quantization at the end of a long residual stream: its cut runs through all of it."""
    net = Net()
    x = net.conv(net.input(2, 3, 2, 1), 3, 7)
    for _ in range(nodes // 2):
        x = net.op("Relu", net.op("Add", x, x))
    y = net.op("ReduceSum", x, net.ints(1))
    coupling = coupled(net.output(net.conv(y, 1, 13)))
    assert sizes(coupling) == [7]
    assert coupling.cut == {("c0", 0), ("c1", 0)}


def test_a_cut_zeroes_the_producers_of_one_factor_only() -> None:
    net = Net()
    x = net.input(2, 4, 11)
    q, k = (net.op("Add", net.dense(x, 11, 5), net.weight(5)) for _ in range(2))
    y = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1]))
    coupling = coupled(net.output(y))
    (group,) = coupling.groups
    plan = prune(coupling, {group.id: np.array([0, 3])}).plan
    roles = {member["tensor"]: member["role"] for member in plan["groups"][0]["members"]}
    assert roles == {"c0": "consumer", "c1": "consumer", "c2": "producer", "c3": "carrier"}
