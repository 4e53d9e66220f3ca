"""Quantization: scales and zero points along an axis are sliced with it."""

from __future__ import annotations

from . import OpRule, Scope, View, first
from .elementwise import broadcast_into


def relate_linear(s: Scope) -> None:
    """QuantizeLinear and DequantizeLinear, per tensor or per channel; blocked scales freeze their axis."""
    broadcast_into(s, (0,))
    rank = s.rank(0)
    for slot in (1, 2):
        if not s.has(slot) or s.rank(slot) == 0:
            continue
        if s.rank(slot) == 1 and s.shape(slot)[0] > 1:
            s.same(s.inp(slot, 0), s.inp(0, s.axis(1, rank)))
        elif s.rank(slot) == rank:
            for axis, (a, b) in enumerate(zip(s.shape(slot), s.shape(0), strict=True)):
                if a == b:
                    s.same(s.inp(slot, axis), s.inp(0, axis))
                else:
                    s.freeze(s.inp(0, axis), "blocks along this axis share a scale")
                    s.freeze(s.inp(slot, axis), "blocks along this axis share a scale")


def points(view: View) -> dict[int, tuple[int, int]]:
    """The zero point is input 2, laid along `axis` where there is one for each channel."""
    return {0: (2, view.axis(1, view.rank(0)))}


def relate_dynamic(s: Scope) -> None:
    """DynamicQuantizeLinear: the range is that of all channels and zero, so that a channel of zeros changes nothing."""
    for axis, other in zip(s.in_axes(0), s.out_axes(), strict=True):
        s.same(axis, other)
        s.contract(axis)


RULES = {
    "DynamicQuantizeLinear": OpRule(relate_dynamic, (11,), zeros=first),
    "QuantizeLinear": OpRule(relate_linear, (10, 13, 19, 21, 23, 24, 25, 28), zeros=first, zero_points=points),
    "DequantizeLinear": OpRule(relate_linear, (10, 13, 19, 21, 23, 24, 25, 28), zeros=first, zero_points=points),
}
