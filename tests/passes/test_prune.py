"""Pruning: what the written model looks like, beyond that it computes the right thing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from net import Net
from onnx import numpy_helper
from onnx_netadapt.ir import Graph, PruneError, load
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.prune import Pruned, keep_share, prune
from oracle import assert_exact, feeds_for


def plain(opset: int = 17) -> Net:
    net = Net(opset)
    x = net.op("Relu", net.conv(net.input(2, 3, 5, 11), 3, 7))
    return net.output(net.conv(x, 7, 13))


def graph_of(net: Net) -> Graph:
    return load(net.model(), shapes=net.shapes)


def halved(graph: Graph) -> Pruned:
    coupling = couple(graph)
    rng = np.random.default_rng(3)
    kept = {g.id: np.sort(rng.permutation(g.units)[: max(1, g.units // 2)]) for g in coupling.groups}
    return prune(coupling, kept)


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_weights_are_slices_of_the_originals() -> None:
    graph = graph_of(plain())
    coupling = couple(graph)
    kept = np.array([1, 4, 6])
    before, after = tensors(graph.model), tensors(prune(coupling, {coupling.groups[0].id: kept}).model)
    np.testing.assert_array_equal(after["c0"], before["c0"][kept])
    np.testing.assert_array_equal(after["c1"], before["c1"][kept])
    np.testing.assert_array_equal(after["c2"], before["c2"][:, kept])
    np.testing.assert_array_equal(after["c3"], before["c3"])


def test_everything_else_stays_as_it_was() -> None:
    model = plain().model()
    model.producer_name, model.doc_string, model.model_version = "somebody", "a note", 5
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.node[0].doc_string = "the stem"
    model.graph.initializer[0].doc_string = "weights of the stem"
    pruned = halved(load(model, shapes={"x0": (2, 3, 5, 11)})).model
    for place in (pruned.graph.node, pruned.graph.input, pruned.graph.output):
        assert len(place) == len(getattr(model.graph, _field(place, pruned)))
    assert [node.SerializeToString() for node in pruned.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    assert pruned.graph.input == model.graph.input
    assert pruned.graph.output == model.graph.output
    assert (pruned.producer_name, pruned.doc_string, pruned.model_version) == ("somebody", "a note", 5)
    assert pruned.metadata_props == model.metadata_props
    assert pruned.graph.initializer[0].doc_string == "weights of the stem"
    assert [tensor.name for tensor in pruned.graph.initializer] == [tensor.name for tensor in model.graph.initializer]


def _field(place: object, model: onnx.ModelProto) -> str:
    return next(
        name
        for name in ("node", "input", "output")
        if getattr(model.graph, name) is place or getattr(model.graph, name) == place
    )


def test_the_original_is_not_touched() -> None:
    graph = graph_of(plain())
    before = graph.model.SerializeToString()
    halved(graph)
    assert graph.model.SerializeToString() == before


def test_the_same_choice_gives_the_same_bytes() -> None:
    first, second = (halved(graph_of(plain())).model.SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_bias_shared_by_layers_of_different_kept_channels_is_copied() -> None:
    net = Net()
    bias = net.const(np.arange(7) / 7, np.float32)
    x = net.op("Relu", net.op("Conv", net.input(2, 3, 5, 11), net.weight(7, 3, 1, 1), bias))
    y = net.op("Relu", net.op("Conv", x, net.weight(7, 7, 1, 1), bias))
    graph = graph_of(net.output(net.conv(y, 7, 13)))
    coupling = couple(graph)
    first, second = coupling.groups
    pruned = prune(coupling, {first.id: np.array([0, 2]), second.id: np.array([1, 5, 6])})
    biases = [tensors(pruned.model)[node.input[2]] for node in pruned.model.graph.node if node.op_type == "Conv"]
    np.testing.assert_allclose(biases[0], np.array([0, 2]) / 7)
    np.testing.assert_allclose(biases[1], np.array([1, 5, 6]) / 7)
    assert_exact(graph, pruned, feeds_for(graph), optimize=False)


def test_a_shared_constant_cut_in_one_place_stays_whole_in_the_other() -> None:
    net = Net()
    scale = net.positive(7, 1, 1)
    x = net.op("Mul", net.conv(net.input(2, 3, 5, 11), 3, 7), scale)
    y = net.op("Mul", net.conv(x, 7, 7), scale)
    graph = graph_of(net.output(y))
    pruned = halved(graph)
    assert_exact(graph, pruned, feeds_for(graph), optimize=False)
    shapes = sorted(
        tensors(pruned.model)[node.input[1]].shape for node in pruned.model.graph.node if node.op_type == "Mul"
    )
    assert shapes == [(3, 1, 1), (7, 1, 1)]


def test_one_weight_read_as_it_is_and_transposed_is_cut_alike() -> None:
    """A tied embedding: the table picks rows, its transpose gives the scores."""
    net = Net()
    table = net.weight(97, 53)
    tokens = net.input(2, 5, dtype=onnx.TensorProto.INT64)
    x = net.op("Tanh", net.op("Gather", table, tokens))
    graph = graph_of(net.output(net.op("MatMul", x, net.op("Transpose", table, perm=[1, 0]))))
    coupling = couple(graph)
    assert [group.units for group in coupling.groups] == [53]
    assert_exact(graph, halved(graph), feeds_for(graph), optimize=True)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_computed_reshape_with_an_open_batch_follows(batch: int) -> None:
    """x.view(n * heads, -1, width): one element of the shape is a product of the open batch and of what is pruned."""
    net = Net()
    x = net.dense(net.input(2, 5, 3), 3, 21)
    n = net.op("Gather", net.op("Shape", x), net.const(0, np.int64), axis=0)
    rows = net.op("Unsqueeze", net.op("Mul", n, net.const(3, np.int64)), net.ints(0))
    y = net.op("Transpose", net.op("Reshape", x, net.ints(0, 0, 3, 7)), perm=[0, 2, 1, 3])
    y = net.op("Tanh", net.op("Reshape", y, net.op("Concat", rows, net.ints(5, 7), axis=0)))
    back = net.op("Concat", net.op("Unsqueeze", n, net.ints(0)), net.ints(3, 5, 7), axis=0)
    y = net.op("Transpose", net.op("Reshape", y, back), perm=[0, 2, 1, 3])
    graph = graph_of(net.output(net.dense(net.op("Reshape", y, net.ints(0, 0, -1)), 21, 13)))
    pruned = halved(graph)
    other = load(graph.model, shapes={"x0": (batch, 5, 3)})
    assert_exact(graph, pruned, feeds_for(other, 1), optimize=False)


@pytest.mark.parametrize("batch", [1, 4])
def test_an_open_size_beside_a_rest_is_copied_from_the_data(batch: int) -> None:
    """Heads are split by one computed shape, (batch, -1, heads, width), for two tensors whose widths differ later."""
    net = Net(17)
    x = net.input(2, 5, 3)
    size = net.op("Gather", net.op("Shape", x), net.ints(0), axis=0)
    width = net.op("Div", net.op("Gather", net.op("Shape", first := net.dense(x, 3, 12)), net.ints(2)), net.ints(3))
    shape = net.op("Concat", size, net.ints(-1), net.ints(3), width, axis=0)
    query, value = (net.op("Reshape", y, shape) for y in (first, net.dense(x, 3, 12)))
    scores = net.op("Softmax", net.op("MatMul", query, net.op("Transpose", query, perm=[0, 1, 3, 2])), axis=-1)
    mixed = net.op("MatMul", scores, value)
    net.output(net.dense(net.op("Reshape", mixed, net.ints(0, 0, -1)), 12, 5))
    graph = graph_of(net)
    coupling = couple(graph)
    assert len(coupling.groups) > 1
    other = load(graph.model, shapes={"x0": (batch, 5, 3)})
    for group in coupling.groups:
        assert_exact(
            graph, prune(coupling, {group.id: np.arange(group.units // 2)}), feeds_for(other, 1), optimize=False
        )


def test_a_size_that_enters_the_result_as_a_number_keeps_its_value() -> None:
    """Division by the square root of a width: the pruned model divides by the original's, as the zeroed one does."""
    net = Net()
    x = net.dense(net.input(2, 5, 3), 3, 7)
    width = net.op("Gather", net.op("Shape", x), net.const(2, np.int64), axis=0)
    y = net.op("Div", x, net.op("Sqrt", net.cast(width, onnx.TensorProto.FLOAT)))
    graph = graph_of(net.output(net.dense(y, 7, 13)))
    assert_exact(graph, halved(graph), feeds_for(graph), optimize=False)


def test_declared_shapes_follow_and_open_ones_stay_open() -> None:
    model = onnx.shape_inference.infer_shapes(plain().model())
    pruned = halved(load(model, shapes={"x0": (2, 3, 5, 11)})).model
    dims = {v.name: [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in pruned.graph.value_info}
    assert dims["t0"] == ["batch", 3, 5, 11]
    assert dims["t1"] == ["batch", 3, 5, 11]


@pytest.mark.parametrize(
    ("units", "message"),
    [([], "at least one"), ([0, 0], "distinct"), ([7], "units 0 to 6"), ([-1], "units 0 to 6")],
)
def test_an_impossible_choice_is_refused(units: list[int], message: str) -> None:
    coupling = couple(graph_of(plain()))
    with pytest.raises(PruneError, match=message):
        prune(coupling, {coupling.groups[0].id: np.array(units, dtype=np.int64)})


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(PruneError, match="no group 'g9'"):
        prune(couple(graph_of(plain())), {"g9": np.array([0])})


def test_a_share_keeps_the_best_and_at_least_one() -> None:
    coupling = couple(graph_of(plain()))
    name = coupling.groups[0].id
    scores = {name: np.array([3.0, 9, 1, 7, 5, 2, 8])}
    assert keep_share(coupling, 0.5, scores)[name].tolist() == [1, 3, 4, 6]
    assert keep_share(coupling, 0.01, scores)[name].tolist() == [1]
