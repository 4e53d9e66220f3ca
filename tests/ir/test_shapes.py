"""Shapes: what is inferred, what follows from sizes, and what a trial run finds."""

from __future__ import annotations

import numpy as np
import pytest
from net import Net
from onnx_netadapt.ir import Port, load
from onnx_netadapt.ir.shapes import default_shape, random_input


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ((None, 3, None, None), (1, 3, 224, 224)),
        ((None, None, None, 3), (1, 224, 224, 3)),
        ((4, 3, 32, 48), (4, 3, 32, 48)),
        ((None, None), (1, 32)),
        ((None, 17), (1, 17)),
        ((), ()),
    ],
)
def test_open_dimensions_get_sensible_sizes(dims: tuple[int | None, ...], shape: tuple[int, ...]) -> None:
    assert default_shape(Port("x", dims, 1)) == shape


def test_arithmetic_of_sizes_is_known() -> None:
    net = Net()
    x = net.input(2, 3, 5, 12)
    shape = net.op("Shape", x)
    rows = net.op("Gather", shape, net.const(2, np.int64), axis=0)
    double = net.op("Mul", rows, net.const(2, np.int64))
    target = net.op("Concat", net.ints(0, 3), net.op("Unsqueeze", double, net.ints(0)), net.ints(-1), axis=0)
    y = net.op("Reshape", x, target)
    graph = load(net.output(y).model(), shapes=net.shapes)
    assert graph.known[double] == 10
    assert graph.known[target].tolist() == [0, 3, 10, -1]
    assert graph.shapes[y] == (2, 3, 10, 6)


def test_weights_are_not_taken_for_sizes() -> None:
    net = Net()
    x = net.op("Mul", net.input(2, 7), net.op("Exp", net.weight(7)))
    assert load(net.output(x).model(), shapes=net.shapes).known == {}


def test_a_shape_that_only_a_run_can_tell_is_learnt() -> None:
    net = Net()
    x = net.input(2, 3)
    y = net.op("BiasGelu", x, net.weight(3), domain="com.microsoft")
    z = net.op("Relu", net.dense(y, 3, 7))
    graph = load(net.output(z).model(), shapes=net.shapes)
    assert (graph.shapes[y], graph.shapes[z]) == ((2, 3), (2, 7))


def test_a_model_that_cannot_run_is_loaded_with_a_remark() -> None:
    net = Net()
    x = net.conv(net.input(2, 3, 5, 11), 3, 7)
    model = net.output(net.conv(x, 7, 13)).model()
    model.graph.node.add(op_type="Mystery", domain="com.example", input=[x], output=["m"])
    model.opset_import.add(domain="com.example", version=1)
    graph = load(model, shapes=net.shapes)
    assert graph.shapes[x] == (2, 7, 5, 11)
    assert "m" not in graph.shapes
    assert any("a trial run failed" in note for note in graph.notes)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, np.uint8])
def test_random_inputs_have_the_type_and_are_the_same_for_a_seed(dtype: type) -> None:
    first, second = (random_input(np.random.default_rng(3), (3, 5), np.dtype(dtype)) for _ in range(2))
    assert first.dtype == dtype
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) > 1
