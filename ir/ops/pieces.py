"""Operators that put tensors together or take parts of them by position."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError
from ..scope import Mask
from . import Edit, OpRule, Scope, View, Zeros, every, first


def relate_concat(s: Scope) -> None:
    """Concat: each input is a run of the output's axis."""
    axis = s.axis(1, len(s.out_shape()))
    start = 0
    for slot in range(len(s.node.inputs)):
        _others_same(s, slot, 0, axis)
        size = s.shape(slot)[axis]
        s.take(s.out(axis), s.inp(slot, axis), np.arange(start, start + size))
        start += size


def relate_split(s: Scope) -> None:
    """Split: each output is a run of the input's axis."""
    axis = s.axis(0, s.rank(0))
    start = 0
    for number, name in enumerate(s.node.outputs):
        size = s.out_shape(number)[axis]
        if name:
            _others_same(s, 0, number, axis)
            s.take(s.inp(0, axis), s.out(axis, number), np.arange(start, start + size))
        start += size


def patch_split(edit: Edit) -> None:
    """The sizes follow; they are written out when the parts are no longer equal."""
    axis = edit.axis(0, edit.rank(0))
    sizes = [edit.new_out_shape(number)[axis] for number in range(len(edit.node.outputs))]
    given = "split" in edit.node.attrs or edit.has(1)
    old = [edit.out_shape(number)[axis] for number in range(len(edit.node.outputs))]
    if sizes == old or (not given and len(set(sizes)) == 1 and len(set(old)) == 1):
        return
    if edit.version < 13:
        edit.attrs["split"] = sizes
    else:
        edit.values[1] = np.asarray(sizes, dtype=np.int64)
        if "num_outputs" in edit.node.attrs:
            edit.attrs["num_outputs"] = None


def _others_same(s: Scope, slot: int, number: int, axis: int) -> None:
    for other in range(s.rank(slot)):
        if other != axis:
            s.same(s.inp(slot, other), s.out(other, number))


def slice_parts(view: View) -> dict[int, tuple[int, int, int]]:
    """For each sliced axis (start, end, step), clamped to the axis; ShapeError when they are not known."""
    starts, ends = view.ints("starts", 1), view.ints("ends", 2)
    rank = view.rank(0)
    if starts is None or ends is None:
        raise ShapeError("the bounds of a Slice are computed at run time")
    axes = view.ints("axes", 3, range(len(starts)))
    steps = view.ints("steps", 4, [1] * len(starts))
    if axes is None or steps is None:
        raise ShapeError("the axes or steps of a Slice are computed at run time")
    return {
        axis % rank: slice(start, end, step).indices(view.shape(0)[axis % rank])
        if step > 0 or end > -(2**31)
        else slice(start, None, step).indices(view.shape(0)[axis % rank])
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


def relate_slice(s: Scope) -> None:
    """Slice: the output's axis is a run of the input's."""
    parts = slice_parts(s)
    for axis in range(s.rank(0)):
        start, end, step = parts.get(axis, (0, s.shape(0)[axis], 1))
        index = np.arange(start, end, step)
        if len(index) == s.shape(0)[axis] and step == 1:
            s.same(s.inp(0, axis), s.out(axis))
        elif len(index) == 1 and s.shape(0)[axis] == 1:
            continue
        elif step == 1 and len(index) > 1:
            s.take(s.inp(0, axis), s.out(axis), index)
        else:
            reason = "a Slice with a step" if step != 1 else "a Slice that takes one position"
            s.freeze(s.inp(0, axis), reason)
            s.freeze(s.out(axis), reason)


def patch_slice(edit: Edit) -> None:
    """Bounds on pruned axes follow the kept positions; ends beyond the axis stay."""
    starts, ends = edit.ints("starts", 1), edit.ints("ends", 2)
    if starts is None or ends is None:
        return
    axes = edit.ints("axes", 3, range(len(starts))) or tuple(range(len(starts)))
    new_starts, new_ends = list(starts), list(ends)
    for place, axis in enumerate(axes):
        mask = edit.kept_in(0, axis)
        if not mask.all():
            begin, end, _ = slice_parts(edit)[axis % edit.rank(0)]
            new_starts[place] = int(mask[:begin].sum())
            new_ends[place] = ends[place] if ends[place] >= len(mask) else int(mask[:end].sum())
    edit.set_ints("starts", 1, new_starts)
    edit.set_ints("ends", 2, new_ends)


def relate_gather(s: Scope) -> None:
    """Gather with constant indices picks channels; with computed ones its table keeps its other axes only."""
    axis = s.axis(0, s.rank(0))
    index = s.value(1)
    rank = len(s.out_shape()) - s.rank(0) + 1
    for other in range(s.rank(0)):
        if other != axis:
            s.same(s.inp(0, other), s.out(other if other < axis else other - 1 + rank))
    if index is not None and index.ndim == 1 and len(index) > 1:
        s.take(s.inp(0, axis), s.out(axis), index % s.shape(0)[axis])
        return
    s.freeze(s.inp(0, axis), "Gather picks positions of this axis one by one")
    if index is None:
        for place in range(rank):
            s.same(s.inp(1, place), s.out(axis + place))


def patch_gather(edit: Edit) -> None:
    """Constant indices are renumbered, and those of removed positions dropped."""
    axis = edit.axis(0, edit.rank(0))
    index = edit.value(1)
    if index is None or index.ndim != 1 or len(index) < 2:
        return
    edit.values[1] = renumber(index, edit.kept_in(0, axis), edit.kept_out(axis))


def renumber(index: NDArray[Any], source: Mask, target: Mask) -> NDArray[Any]:
    """Indices of the kept target positions in the numbering of the kept source positions."""
    places = np.cumsum(source) - 1
    return np.asarray(places[index[target] % len(source)], dtype=index.dtype)


def relate_pad(s: Scope) -> None:
    """Pad: the input is a run of the output; what is added belongs to the output alone."""
    before, after = _pads(s)
    constant = s.attr("mode", "constant") == "constant"
    for axis, (a, b) in enumerate(zip(before, after, strict=True)):
        size = s.shape(0)[axis]
        if a == b == 0:
            s.same(s.inp(0, axis), s.out(axis))
        elif a >= 0 and b >= 0 and constant:
            s.take(s.out(axis), s.inp(0, axis), np.arange(a, a + size))
        else:
            for place in (s.inp(0, axis), s.out(axis)):
                s.freeze(place, f"Pad with mode {s.attr('mode', 'constant')} along this axis")


def _pads(view: View) -> tuple[list[int], list[int]]:
    """Pads before and after every axis."""
    name = "paddings" if "paddings" in view.node.attrs else "pads"
    pads = view.ints(name, 1)
    rank = view.rank(0)
    axes = view.ints("", 3, range(rank))
    if pads is None or axes is None:
        raise ShapeError("the pads are computed at run time")
    before, after = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        before[axis], after[axis] = pads[place], pads[place + len(axes)]
    return before, after


def patch_pad(edit: Edit) -> None:
    """Pads along a pruned axis shrink to the kept positions."""
    before, after = _pads(edit)
    for axis, size in enumerate(edit.shape(0)):
        mask = edit.kept_out(axis)
        if not mask.all() and (before[axis] or after[axis]):
            after[axis] = int(mask[before[axis] + size :].sum())
            before[axis] = int(mask[: before[axis]].sum())
    axes = edit.ints("", 3, range(edit.rank(0))) or ()
    name = "paddings" if "paddings" in edit.node.attrs else "pads"
    edit.set_ints(name, 1, [before[axis] for axis in axes] + [after[axis] for axis in axes])


def zeros_pad(view: View) -> Zeros:
    """Pad keeps zero at zero when it adds zeros, or copies of what is there."""
    if view.attr("mode", "constant") != "constant":
        return first(view)
    value = view.value(2) if view.has(2) else view.attr("value", 0.0)
    return first(view) if value is not None and not np.any(value) else ()


RULES = {
    "Concat": OpRule(relate_concat, (1, 4, 11, 13), zeros=every),
    "Split": OpRule(relate_split, (1, 2, 11, 13, 18), patch_split, zeros=first),
    "Slice": OpRule(relate_slice, (1, 10, 11, 13), patch_slice, zeros=first),
    "Gather": OpRule(relate_gather, (1, 11, 13), patch_gather, zeros=first),
    "Pad": OpRule(relate_pad, (1, 2, 11, 13, 18, 19, 21, 23, 24, 25), patch_pad, zeros=zeros_pad),
}
