"""Operators that lay the same elements out anew: reshapes, transposes, pixel shuffles, repeats."""

from __future__ import annotations

from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from . import Edit, OpRule, Scope, Sizes, View, first
from .elementwise import broadcast_into


def relate_reshape(s: Scope) -> None:
    """Reshape and Flatten: both shapes are row-major groupings of the same elements."""
    s.regroup(s.in_axes(0), s.out_axes())
    _mention(s)


def _mention(s: Scope) -> None:
    """Names the output's axes, so that those which nothing constrains stay free."""
    for axis in s.out_axes():
        s.same(axis, axis)


def patch_reshape(edit: Edit) -> None:
    """The target shape follows; 0 (copy) and -1 (the rest) stay."""
    old = edit.ints("shape", 1)
    if old is None or len(old) != len(edit.new_out_shape()):
        return
    edit.set_ints("shape", 1, [n if o > 0 else o for o, n in zip(old, edit.new_out_shape(), strict=True)])


def open_reshape(view: View, sizes: Sizes, moving: NDArray[np.bool_]) -> Sizes | None:
    """Reshape: 0 copies a leading axis that the data has as well, -1 is the rest, once."""
    new, old = sizes.copy(), view.value(1)
    same = (
        () if old is None or view.attr("allowzero", 0) else (a == b for a, b in zip(view.shape(0), old, strict=False))
    )
    copied = np.arange(len(new)) < len(list(takewhile(bool, same)))
    new[moving & copied] = 0
    rest = moving & ~copied
    if rest.sum() + (new == -1).sum() > 1:
        return None
    new[rest] = -1
    return new


def relate_transpose(s: Scope) -> None:
    """Transpose: output axis i is input axis perm[i]."""
    rank = s.rank(0)
    perm = s.attr("perm", tuple(reversed(range(rank))))
    for place, axis in enumerate(perm):
        s.same(s.inp(0, int(axis)), s.out(place))


def relate_squeeze(s: Scope) -> None:
    """Squeeze and Unsqueeze: only axes of length 1 come and go."""
    some = [axis for axis in s.in_axes(0) if s.relations.length(axis) != 1]
    others = [axis for axis in s.out_axes() if s.relations.length(axis) != 1]
    if len(some) != len(others):
        raise ShapeError("the axes of a Squeeze do not match")
    for axis, other in zip(some, others, strict=True):
        s.same(axis, other)


def relate_expand(s: Scope) -> None:
    """Expand: axes of length 1 are repeated, the others stay."""
    broadcast_into(s, (0,))


def patch_expand(edit: Edit) -> None:
    """The target shape follows; ones stay ones."""
    old = edit.ints("shape", 1)
    if old is not None:
        new = edit.new_out_shape()[-len(old) :] if old else ()
        edit.set_ints("shape", 1, [1 if o == 1 else n for o, n in zip(old, new, strict=True)])


def relate_tile(s: Scope) -> None:
    """Tile: every repeat of a position is the same channel."""
    for axis, (a, b) in enumerate(zip(s.shape(0), s.out_shape(), strict=True)):
        if a == b:
            s.same(s.inp(0, axis), s.out(axis))
        elif a == 1:
            s.same(s.out(axis), s.out(axis))
        else:
            s.take(s.inp(0, axis), s.out(axis), np.arange(b) % a)


def patch_tile(edit: Edit) -> None:
    """The repeats of axes of length 1 follow."""
    edit.set_ints("repeats", 1, [b // a for a, b in zip(edit.new_shape(0), edit.new_out_shape(), strict=True)])


def relate_depth_to_space(s: Scope) -> None:
    """DepthToSpace: a block of b x b channels becomes b x b pixels, so that each output channel takes b*b inputs."""
    b = int(s.attr("blocksize"))
    block = "(C b0 b1)" if s.attr("mode", "DCR") == "CRD" else "(b0 b1 C)"
    s.signature(f"n {block} h w -> n C p q", b0=b, b1=b)


def relate_space_to_depth(s: Scope) -> None:
    """SpaceToDepth: the opposite of DepthToSpace (DCR)."""
    b = int(s.attr("blocksize"))
    s.signature("n C h w -> n (b0 b1 C) p q", b0=b, b1=b)


RULES = {
    "Reshape": OpRule(
        relate_reshape, (1, 5, 13, 14, 19, 21, 23, 24, 25), patch_reshape, zeros=first, leave_open=open_reshape
    ),
    "Flatten": OpRule(relate_reshape, (1, 9, 11, 13, 21, 23, 24, 25), zeros=first),
    "Transpose": OpRule(relate_transpose, (1, 13, 21, 23, 24, 25), zeros=first),
    "Squeeze": OpRule(relate_squeeze, (1, 11, 13, 21, 23, 24, 25), zeros=first),
    "Unsqueeze": OpRule(relate_squeeze, (1, 11, 13, 21, 23, 24, 25), zeros=first),
    "Expand": OpRule(relate_expand, (8, 13), patch_expand, zeros=first),
    "Tile": OpRule(relate_tile, (6, 13), patch_tile, zeros=first),
    "DepthToSpace": OpRule(relate_depth_to_space, (1, 11, 13, 28), zeros=first),
    "SpaceToDepth": OpRule(relate_space_to_depth, (1, 13, 28), zeros=first),
}
