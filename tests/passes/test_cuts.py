"""Cuts: channels are zeroed at their producers where nobody who reads them has weights."""

from __future__ import annotations

import numpy as np
import pytest
from net import Net
from onnx_netadapt.ir import Graph, load
from onnx_netadapt.passes.coupling import couple
from onnx_netadapt.passes.equivalence import zeroed
from onnx_netadapt.passes.prune import prune
from oracle import difference, feeds_for, planted, run


def quantized_behind(norm: str, opset: int) -> Graph:
    """A normalised stream of 7 channels, rounded over its own range: the range must not see removed channels.

    Weights of 7 bits: two products of a byte with more of them overflow the 16 bits that ONNX Runtime adds them in on
    processors without dot products of bytes, and which two it adds depends on the channels that are there.
    """
    net = Net(opset)
    x = net.op("Relu", net.dense(net.input(2, 5, 3), 3, 7))
    weights = [net.positive(7), net.weight(7)] if norm == "LayerNormalization" else [net.positive(7)]
    bytes_, scale, zero = net.ops("DynamicQuantizeLinear", net.op(norm, x, *weights), count=3)
    stored = net.const(net.rng.integers(-63, 64, (7, 13)), np.int8)
    y = net.op("Cast", net.op("MatMulInteger", bytes_, stored, zero), to=1)
    return load(net.output(net.op("Mul", y, scale)).model(), shapes=net.shapes)


@pytest.mark.parametrize(
    ("norm", "opset"), [("LayerNormalization", 17), ("RMSNormalization", 23), ("SimplifiedLayerNormalization", 17)]
)
def test_a_normalisation_is_cut_at_its_scale_and_bias(norm: str, opset: int) -> None:
    graph = quantized_behind(norm, opset)
    coupling = couple(graph, renormalize=True)
    assert [group.units for group in coupling.groups] == [7]
    group = coupling.groups[0].id
    pruned = prune(coupling, {group: np.array([0, 2, 3, 6])})
    feeds = feeds_for(graph)
    found = run(pruned.model, feeds, optimize=False)
    # a sum in another order may tip a value over to the next of 255 steps
    assert difference(run(zeroed(graph.model, pruned.plan), feeds, optimize=False), found) < 2e-2
    wrong = planted(pruned.plan, group)
    assert difference(run(zeroed(graph.model, wrong), feeds, optimize=False), found) > 0.2


def test_what_is_not_zero_at_zero_has_no_cut() -> None:
    net = Net()
    x = net.op("Sigmoid", net.dense(net.input(2, 5, 3), 3, 7))
    bytes_, scale, zero = net.ops("DynamicQuantizeLinear", x, count=3)
    stored = net.const(net.rng.integers(-63, 64, (7, 13)), np.int8)
    y = net.op("Cast", net.op("MatMulInteger", bytes_, stored, zero), to=1)
    coupling = couple(load(net.output(net.op("Mul", y, scale)).model(), shapes=net.shapes))
    assert coupling.groups == ()
    assert any("cannot be made zero" in barrier.reason for barrier in coupling.barriers)
