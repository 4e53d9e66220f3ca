"""Reductions and other operators that combine all positions of an axis: that axis cannot lose a channel."""

from __future__ import annotations

from ..errors import ShapeError
from . import OpRule, Scope, first
from .elementwise import broadcast_into


def relate_reduce(s: Scope) -> None:
    """ReduceMean, ReduceSum, ...: the reduced axes are frozen, the others go through."""
    rank = s.rank(0)
    axes = s.ints("axes", 1, ())
    if axes is None:
        raise ShapeError("the axes of a reduction are computed at run time")
    if not axes:
        axes = () if s.attr("noop_with_empty_axes", 0) else tuple(range(rank))
    gone = {axis % rank for axis in axes}
    if s.node.op_type == "ReduceMean":
        s.mean([s.inp(0, axis) for axis in sorted(gone)], f"{s.node.op_type} runs over this axis")
    _collapse(s, gone, bool(s.attr("keepdims", 1)), how=s.node.op_type)


def relate_arg(s: Scope) -> None:
    """ArgMax and ArgMin along `axis`."""
    _collapse(s, {s.axis(0, s.rank(0))}, bool(s.attr("keepdims", 1)))


def _collapse(s: Scope, gone: set[int], keepdims: bool, *, how: str = "") -> None:
    place = 0
    for axis in range(s.rank(0)):
        if axis in gone and how in _SUMS:
            s.same(s.inp(0, axis), s.inp(0, axis))
            s.contract(s.inp(0, axis))
        elif axis in gone and how != "ReduceMean":
            s.freeze(s.inp(0, axis), f"{s.node.op_type} runs over this axis")
        elif axis not in gone:
            s.same(s.inp(0, axis), s.out(place))
        place += keepdims or axis not in gone


def relate_softmax(s: Scope) -> None:
    """Softmax and its relatives: over one axis, and before opset 13 over all from that axis on."""
    broadcast_into(s, (0,))
    rank = s.rank(0)
    old = s.version < 13
    start = s.axis(1 if old else -1, rank)
    for axis in range(start, rank if old else start + 1):
        s.freeze(s.inp(0, axis), f"{s.node.op_type} mixes all channels of this axis")


def relate_along_axis(s: Scope) -> None:
    """CumSum, TopK and others whose output has the input's axes except one."""
    rank = s.rank(0)
    axis = s.ints("axis", 1, (s.axis(-1, rank),)) if s.node.op_type in ("CumSum", "CumProd") else (s.axis(-1, rank),)
    if axis is None:
        raise ShapeError("the axis is computed at run time")
    for number, name in enumerate(s.node.outputs):
        for place in range(rank):
            if name and place != axis[0] % rank:
                s.same(s.inp(0, place), s.out(place, number))
        if name:
            s.freeze(s.out(axis[0] % rank, number), f"{s.node.op_type} runs over this axis")
    s.freeze(s.inp(0, axis[0] % rank), f"{s.node.op_type} runs over this axis")


_SUMS = frozenset({"ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare"})
"""A channel that is zero adds nothing: a sum over channels is exact when they are zeroed before it."""

_REDUCTIONS = {
    "L1": (1, 11, 13, 18), "L2": (1, 11, 13, 18), "LogSum": (1, 11, 13, 18, 28), "LogSumExp": (1, 11, 13, 18, 28),
    "Max": (1, 11, 12, 13, 18, 20), "Mean": (1, 11, 13, 18), "Min": (1, 11, 12, 13, 18, 20),
    "Prod": (1, 11, 13, 18), "Sum": (1, 11, 13), "SumSquare": (1, 11, 13, 18),
}  # fmt: skip

RULES = {
    **{f"Reduce{name}": OpRule(relate_reduce, since, zeros=first) for name, since in _REDUCTIONS.items()},
    "ArgMax": OpRule(relate_arg, (1, 11, 12, 13)),
    "ArgMin": OpRule(relate_arg, (1, 11, 12, 13)),
    "Softmax": OpRule(relate_softmax, (1, 11, 13)),
    "LogSoftmax": OpRule(relate_softmax, (1, 11, 13)),
    "Hardmax": OpRule(relate_softmax, (1, 11, 13)),
    "CumProd": OpRule(relate_along_axis, (26,)),
    "CumSum": OpRule(relate_along_axis, (11, 14), zeros=first),
    "TopK": OpRule(relate_along_axis, (1, 10, 11, 24)),
}
