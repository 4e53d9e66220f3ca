"""Operators as matrix products: W X + b from the columns is what ONNX Runtime computes."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from linear_cases import Array, Net, examples, graph_of, tensors_of
from onnx_netadapt.ir.ops.maps import added_stream, channels_first, is_softmax, linear_map
from onnx_netadapt.passes.rows import columns_of, outputs_of, positions

CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 7, 5), (5, 3, 3, 2), {}),
    "strides, pads and dilations": (
        (3, 11, 13),
        (5, 3, 3, 2),
        {"strides": [2, 3], "pads": [1, 0, 2, 1], "dilations": [2, 1]},
    ),
    "groups": ((6, 7, 5), (9, 2, 3, 1), {"group": 3, "pads": [1, 0, 1, 0]}),
    "depthwise": ((5, 7, 5), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}),
    "padded at the end": ((3, 7, 6), (5, 3, 4, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "padded at the start": ((3, 7, 6), (5, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "not padded": ((3, 7, 6), (5, 3, 2, 2), {"auto_pad": "VALID"}),
    "one axis": ((3, 11), (7, 3, 5), {"pads": [2, 1], "strides": [2]}),
    "three axes": ((2, 5, 3, 7), (3, 2, 3, 1, 2), {"pads": [1, 0, 0, 1, 0, 1], "strides": [2, 1, 3]}),
}
TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((3, 5, 7), (3, 5, 2, 3), {}),
    "strides, pads and dilations": (
        (3, 5, 7),
        (3, 5, 2, 3),
        {"strides": [3, 2], "pads": [1, 0, 0, 2], "dilations": [2, 1], "output_padding": [1, 0]},
    ),
    "groups": ((6, 5, 3), (6, 5, 2, 2), {"group": 3, "strides": [2, 2]}),
    "one axis": ((3, 11), (3, 5, 4), {"strides": [2], "pads": [1, 1]}),
    "three axes": ((2, 3, 2, 5), (2, 3, 2, 2, 3), {"strides": [2, 1, 2]}),
}
PRODUCTS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...] | None, bool, dict[str, Any]]] = {
    # operator, data, weight, bias, whether the weight stands on the right, attributes
    "Gemm": ("Gemm", (7,), (7, 5), (5,), True, {}),
    "Gemm transB": ("Gemm", (7,), (5, 7), (1, 5), True, {"transB": 1}),
    "Gemm alpha beta": ("Gemm", (7,), (5, 7), (5,), True, {"transB": 1, "alpha": 0.5, "beta": -3.0}),
    "MatMul": ("MatMul", (7,), (7, 5), None, True, {}),
    "MatMul tokens": ("MatMul", (3, 7), (7, 5), None, True, {}),
    "MatMul heads": ("MatMul", (2, 3, 7), (7, 5), None, True, {}),
    "MatMul left": ("MatMul", (7, 3), (5, 7), None, False, {}),
    "MatMul left of heads": ("MatMul", (2, 7, 3), (5, 7), None, False, {}),
}


def _check(model: onnx.ModelProto, x: Array, *, shift: int = 0) -> float:
    """The largest difference between Y and W X + b, as a share of Y's range."""
    graph = graph_of(model)
    map_ = linear_map(graph, graph.nodes[0])
    assert map_ is not None
    window = map_.window
    if shift:
        window = replace(
            window, pads=tuple(pad + shift * (1 if n < len(window.kernel) else -1) for n, pad in enumerate(window.pads))
        )
    places = np.arange(positions(window, x.shape))
    rows = columns_of(x, window, places)
    weight = graph.constants[graph.nodes[0].inputs[map_.weight]].array()
    matrix = map_.matrix(weight, window.groups)
    assert np.allclose(map_.weight_of(matrix, weight.shape), weight, rtol=1e-12)
    found = np.einsum("gok,grk->gro", matrix, rows)
    if map_.bias >= 0:
        bias = graph.constants[graph.nodes[0].inputs[map_.bias]].array()
        found += map_.offset * bias.reshape(window.groups, 1, -1)
    want = tensors_of(model, ["y"], x)[0]
    assert len(places) == channels_first(want, map_.out_axis).shape[2]
    wanted = outputs_of(want, map_.out_axis, window.groups, places)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _conv(op: str, data: tuple[int, ...], weight: tuple[int, ...], attrs: dict[str, Any]) -> onnx.ModelProto:
    net = Net(data)
    outputs = weight[0] if op == "Conv" else weight[1] * attrs.get("group", 1)
    net.add(op, "x", net.weight("w", *weight), net.weight("b", outputs), out="y", **attrs)
    return net.model("y", len(data) + 1)


@pytest.mark.parametrize("name", CONVS)
def test_a_convolution_is_a_product(name: str) -> None:
    data, weight, attrs = CONVS[name]
    assert _check(_conv("Conv", data, weight, attrs), examples(data, 3)) < 1e-5


@pytest.mark.parametrize("name", TRANSPOSED)
def test_a_transposed_convolution_is_a_product(name: str) -> None:
    data, weight, attrs = TRANSPOSED[name]
    assert _check(_conv("ConvTranspose", data, weight, attrs), examples(data, 3)) < 1e-5


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_matrix_product_is_a_product(name: str) -> None:
    op, data, weight, bias, right, attrs = PRODUCTS[name]
    net = Net(data)
    w = net.weight("w", *weight)
    inputs = ["x", w] if right else [w, "x"]
    net.add(op, *inputs, *([net.weight("b", *bias)] if bias else []), out="y", **attrs)
    assert _check(net.model("y", len(data) + 1), examples(data, 3)) < 1e-5


@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("right", [True, False])
def test_a_gemm_is_a_product_however_it_is_transposed(trans_a: int, trans_b: int, right: bool) -> None:
    net = Net((7,))
    net.input_shape = ()
    rows, inner, outer = 3, 7, 5
    shapes = (inner, rows) if trans_a else (rows, inner), (outer, inner) if trans_b else (inner, outer)
    weight = net.weight("w", *shapes[int(right)])
    net.add("Gemm", *(["x", weight] if right else [weight, "x"]), out="y", transA=trans_a, transB=trans_b)
    x = examples(shapes[1 - int(right)][1:], shapes[1 - int(right)][0])
    net.input_shape = x.shape[1:]
    model = net.model("y", 2)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = len(x)
    assert _check(model, x) < 1e-5


def test_a_window_in_the_wrong_place_is_seen() -> None:
    data, weight, attrs = CONVS["strides, pads and dilations"]
    assert _check(_conv("Conv", data, weight, attrs), examples(data, 3), shift=1) > 0.1


@pytest.mark.parametrize("kind", ["weights that are computed", "two activations", "an elementwise node"])
def test_what_is_no_product_with_constants_has_no_map(kind: str) -> None:
    net = Net((3, 3))
    if kind == "weights that are computed":
        net.add("Identity", net.weight("w", 3, 5), out="v")
        net.add("MatMul", "x", "v", out="y")
    elif kind == "two activations":
        net.add("MatMul", "x", "x", out="y")
    else:
        net.add("Add", "x", "x", out="y")
    graph = graph_of(net.model("y", 3))
    assert linear_map(graph, graph.nodes[-1]) is None


def test_a_stream_is_the_other_operand_of_a_sum() -> None:
    net = Net((3, 5))
    net.add("Relu", "x", out="a")
    net.add("Add", "a", "x", out="s")
    net.add("Add", "s", net.weight("c", 5), out="y")
    net.add("Softmax", "y", out="z")
    graph = graph_of(net.model("z", 3))
    assert added_stream(graph, graph.nodes[1], "a") == "x"
    assert added_stream(graph, graph.nodes[2], "s") is None  # another shape: a bias, not a stream
    assert added_stream(graph, graph.nodes[0], "x") is None
    assert [is_softmax(node) for node in graph.nodes] == [False, False, False, True]
