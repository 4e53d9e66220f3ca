"""Quantization: scales and zero points along an axis are sliced with it."""

from __future__ import annotations

from . import OpRule, Scope
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


RULES = {
    "QuantizeLinear": OpRule(relate_linear, (10, 13, 19, 21, 23, 24, 25, 28)),
    "DequantizeLinear": OpRule(relate_linear, (10, 13, 19, 21, 23, 24, 25, 28)),
}
