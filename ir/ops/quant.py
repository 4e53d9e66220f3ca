"""Quantization: scales and zero points along an axis are sliced with it."""

from __future__ import annotations

import numpy as np
import onnx

from . import MICROSOFT, OpRule, Scope, View, first, spatial
from .elementwise import broadcast_into


def relate_linear(s: Scope) -> None:
    """QuantizeLinear and DequantizeLinear, per tensor or per channel; blocked scales freeze their axis."""
    broadcast_into(s, (0,))
    rank = s.rank(0)
    for slot in (1, 2):
        if not s.has(slot) or np.prod(s.shape(slot)) == 1:
            continue  # per tensor
        if s.rank(slot) == 1:
            s.same(s.inp(slot, 0), s.inp(0, s.axis(1, rank)))
        elif s.rank(slot) == rank:
            for axis, (a, b) in enumerate(zip(s.shape(slot), s.shape(0), strict=True)):
                if a == b:
                    s.same(s.inp(slot, axis), s.inp(0, axis))
                else:
                    s.freeze(s.inp(0, axis), "blocks along this axis share a scale")
                    s.freeze(s.inp(slot, axis), "blocks along this axis share a scale")


def rounds_activations(model: onnx.ModelProto) -> bool:
    """Whether a model rounds values to a few bits while it runs (weights that are stored so do not count)."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QGemm", "DynamicQuantizeMatMul")
        or node.op_type.startswith("QLinear")
        for node in model.graph.node
    )


def points(view: View) -> dict[int, tuple[int, int]]:
    """The zero point is input 2, laid along `axis` where there is one for each channel."""
    return {0: (2, view.axis(1, view.rank(0)))}


def relate_dynamic(s: Scope) -> None:
    """DynamicQuantizeLinear: the range is that of all channels and zero, so that a channel of zeros changes nothing."""
    for axis, other in zip(s.in_axes(0), s.out_axes(), strict=True):
        s.same(axis, other)
        s.contract(axis)


_STEPS = OpRule(relate_linear, (1,), zeros=first, zero_points=points, domain=MICROSOFT)
_VERSIONS = OpRule(relate_linear, (10, 13, 19, 21, 23, 24, 25, 28), zeros=first, zero_points=points)


def relate_qlinear_unary(s: Scope) -> None:
    """com.microsoft.QLinearSigmoid and QLinearLeakyRelu: bytes in, bytes out, one scale for all."""
    broadcast_into(s, (0,))


def relate_qlinear_binary(s: Scope) -> None:
    """com.microsoft.QLinearAdd and QLinearMul: operands are inputs 0 and 3, each with scale and zero point behind."""
    broadcast_into(s, (0, 3))


def relate_qlinear_pool(s: Scope) -> None:
    """com.microsoft.QLinearGlobalAveragePool and QLinearAveragePool, with channels first or last."""
    x, y = spatial("s", s.rank(0)), spatial("p", len(s.out_shape()))
    s.signature(f"n{x} C -> n{y} C" if s.attr("channels_last", 0) else f"n C{x} -> n C{y}")


def relate_qlinear_where(s: Scope) -> None:
    """com.microsoft.QLinearWhere: condition, x, scale, zero, y, scale, zero, z_scale, z_zero."""
    broadcast_into(s, (0, 1, 4))


def relate_qlinear_softmax(s: Scope) -> None:
    """com.microsoft.QLinearSoftmax: a Softmax of the opset that its attribute names, on bytes."""
    broadcast_into(s, (0,))
    rank, old = s.rank(0), int(s.attr("opset", 13)) < 13
    start = s.axis(1 if old else -1, rank)
    for axis in range(start, rank if old else start + 1):
        s.freeze(s.inp(0, axis), "QLinearSoftmax mixes all channels of this axis")


def relate_qlinear_concat(s: Scope) -> None:
    """com.microsoft.QLinearConcat: the output's scale and zero point, then each input with its own."""
    axis, start = s.axis(1, len(s.out_shape())), 0
    for slot in range(2, len(s.node.inputs), 3):
        for other in range(s.rank(slot)):
            if other != axis:
                s.same(s.inp(slot, other), s.out(other))
        size = s.shape(slot)[axis]
        s.take(s.out(axis), s.inp(slot, axis), np.arange(start, start + size))
        start += size


RULES: dict[str, OpRule | tuple[OpRule, ...]] = {
    "QLinearAdd": OpRule(relate_qlinear_binary, (1,), domain=MICROSOFT),
    "QLinearAveragePool": OpRule(relate_qlinear_pool, (1,), domain=MICROSOFT),
    "QLinearConcat": OpRule(relate_qlinear_concat, (1,), domain=MICROSOFT),
    "QLinearGlobalAveragePool": OpRule(relate_qlinear_pool, (1,), domain=MICROSOFT),
    "QLinearLeakyRelu": OpRule(relate_qlinear_unary, (1,), domain=MICROSOFT),
    "QLinearMul": OpRule(relate_qlinear_binary, (1,), domain=MICROSOFT),
    "QLinearSigmoid": OpRule(relate_qlinear_unary, (1,), domain=MICROSOFT),
    "QLinearSoftmax": OpRule(relate_qlinear_softmax, (1,), domain=MICROSOFT),
    "QLinearWhere": OpRule(relate_qlinear_where, (1,), domain=MICROSOFT),
    "DynamicQuantizeLinear": OpRule(relate_dynamic, (11,), zeros=first),
    "QuantizeLinear": (_VERSIONS, _STEPS),
    "DequantizeLinear": (_VERSIONS, _STEPS),
}
