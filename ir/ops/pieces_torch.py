"""The torch forms of operators that put tensors together or take parts of them by position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import View
from .runtime import Lowered, Lowering, ints, refuse, scalar, torch_pads


def lower_concat(view: View, torch: Any) -> Lowered:
    """Concat; before opset 4 the axis is 1 by default."""
    axis = int(view.attr("axis", 1))
    return lambda *args: torch.cat(args, axis)


def lower_split(view: View, torch: Any) -> Lowered:
    """Split into given sizes, or into as many equal parts as there are outputs (the last one smaller)."""
    read, count = ints(view, "split", 1), len(view.node.outputs)
    axis = int(view.attr("axis", 0))

    def run(*args: Any) -> Any:
        x, sizes = args[0], read(args)
        if sizes is None:
            part = -(-x.shape[axis] // count)
            sizes = tuple(max(0, min(part, x.shape[axis] - part * place)) for place in range(count))
        return torch.split(x, list(sizes), axis)

    return run


def lower_slice(view: View, torch: Any) -> Lowered:
    """Slice; a negative step goes through flip."""
    starts, ends = ints(view, "starts", 1), ints(view, "ends", 2)
    read_axes, read_steps = ints(view, "axes", 3), ints(view, "steps", 4)

    def run(*args: Any) -> Any:
        x, first, last = args[0], starts(args) or (), ends(args) or ()
        axes = read_axes(args) or range(len(first))
        steps = read_steps(args) or [1] * len(first)
        for axis, start, end, step in zip(axes, first, last, steps, strict=True):
            x = _slice(x, axis, start, end, step)
        return x

    return run


def _slice(x: Any, axis: int, start: int, end: int, step: int) -> Any:
    size = x.shape[axis]
    axis = axis % x.dim()
    if step > 0:
        return x[(slice(None),) * axis + (slice(start, end, step),)]
    # bounds count from 0 again after the axis is turned round: position p becomes size - 1 - p
    begin, stop, _ = slice(start, None if end <= -size - 1 else end, step).indices(size)
    return x.flip(axis)[(slice(None),) * axis + (slice(size - 1 - begin, size - 1 - stop, -step),)]


def lower_gather(view: View, torch: Any) -> Lowered:
    """Gather along an axis; the result has the index's axes in its place."""
    axis = int(view.attr("axis", 0))
    known = view.value(1)
    single = int(known) if known is not None and known.ndim == 0 else None

    def run(x: Any, index: Any) -> Any:
        place = axis % x.dim()
        if single is not None:
            return x.select(place, single)
        flat = torch.remainder(index.reshape(-1).long(), x.shape[place])
        return x.index_select(place, flat).reshape((*x.shape[:place], *index.shape, *x.shape[place + 1 :]))

    return run


def lower_gather_elements(view: View, torch: Any) -> Lowered:
    """GatherElements."""
    axis = int(view.attr("axis", 0))
    return lambda x, index: torch.gather(x, axis, torch.remainder(index.long(), x.shape[axis]))


def lower_gather_nd(view: View, torch: Any) -> Lowered:
    """GatherND: the last axis of the index holds coordinates."""
    lead = int(view.attr("batch_dims", 0))

    def run(x: Any, index: Any) -> Any:
        count = index.shape[-1]
        shape = (*index.shape[:-1], *x.shape[lead + count :])
        flat, places = x.reshape(-1, *x.shape[lead:]), index.reshape(-1, *index.shape[lead:-1], count).long()
        rows = [part[tuple(place.unbind(-1))] for part, place in zip(flat, places, strict=True)]
        return torch.stack(rows).reshape(shape)

    return run


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def lower_scatter_elements(view: View, torch: Any) -> Lowered:
    """ScatterElements and Scatter."""
    axis, how = int(view.attr("axis", 0)), str(view.attr("reduction", "none"))

    def run(x: Any, index: Any, updates: Any) -> Any:
        places = torch.remainder(index.long(), x.shape[axis])
        if how == "none":
            return x.scatter(axis, places, updates)
        return x.scatter_reduce(axis, places, updates, _REDUCE[how], include_self=True)

    return run


def lower_scatter_nd(view: View, torch: Any) -> Lowered:
    """ScatterND: updates at the coordinates that the last axis of the index holds."""
    how = str(view.attr("reduction", "none"))

    def run(x: Any, index: Any, updates: Any) -> Any:
        count = index.shape[-1]
        places = index.reshape(-1, count).long()
        lengths = torch.tensor(x.shape[:count], device=places.device)
        strides = torch.tensor([int(np.prod(x.shape[k + 1 : count])) for k in range(count)], device=places.device)
        rows = (torch.remainder(places, lengths) * strides).sum(-1)
        flat = x.reshape(-1, *x.shape[count:])
        values = updates.reshape(-1, *x.shape[count:]).to(x.dtype)
        if how == "none":
            return flat.index_copy(0, rows, values).reshape(x.shape)
        rows = rows.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)
        return flat.scatter_reduce(0, rows, values, _REDUCE[how], include_self=True).reshape(x.shape)

    return run


def lower_pad(view: View, torch: Any) -> Lowered:
    """Pad with a constant, the edge, a reflection or the other end; negative pads crop."""
    read = ints(view, "paddings" if "paddings" in view.node.attrs else "pads", 1)
    read_axes, mode = ints(view, "", 3), str(view.attr("mode", "constant"))
    fixed = float(view.attr("value", 0.0))
    read_value = scalar(view, 2, fixed) if view.version >= 11 else lambda args: fixed
    if mode not in ("constant", "edge", "reflect", "wrap"):
        raise refuse(view, f"mode '{mode}'")

    def run(*args: Any) -> Any:
        x, pads = args[0], read(args) or ()
        before, after = [0] * x.dim(), [0] * x.dim()
        given = read_axes(args)
        axes = range(x.dim()) if given is None else given
        for place, axis in enumerate(axes):
            before[axis], after[axis] = pads[place], pads[place + len(axes)]
        if mode == "constant":
            value = read_value(args)
            number = value.item() if isinstance(value, torch.Tensor) else value
            if x.dtype == torch.bool:
                return torch.nn.functional.pad(x.to(torch.uint8), torch_pads(before, after), value=int(number)).bool()
            return torch.nn.functional.pad(x, torch_pads(before, after), value=number)
        return _pad_by_index(x, before, after, mode, torch)

    return run


def _pad_by_index(x: Any, before: Sequence[int], after: Sequence[int], mode: str, torch: Any) -> Any:
    names = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
    for axis, (a, b) in enumerate(zip(before, after, strict=True)):
        if a == b == 0:
            continue
        places = np.pad(np.arange(x.shape[axis]), (max(a, 0), max(b, 0)), mode=names[mode])  # type: ignore[call-overload]
        places = places[max(-a, 0) : len(places) - max(-b, 0)]
        x = x.index_select(axis, torch.from_numpy(np.ascontiguousarray(places)).to(x.device))
    return x


def lower_compress(view: View, torch: Any) -> Lowered:
    """Compress: the positions whose condition is true."""
    axis = view.attr("axis")

    def run(x: Any, condition: Any) -> Any:
        flat = x.reshape(-1) if axis is None else x
        return flat.index_select(int(axis or 0), condition.nonzero().reshape(-1))

    return run


def lower_one_hot(view: View, torch: Any) -> Lowered:
    """OneHot: depth and the values (off, on) are inputs."""
    axis = int(view.attr("axis", -1))

    def run(index: Any, depth: Any, values: Any) -> Any:
        count = int(depth.reshape(-1)[0])
        places = torch.remainder(index.long(), count)
        # an index outside [-depth, depth) is nowhere on
        there = (index >= -count) & (index < count)
        hot = torch.nn.functional.one_hot(places, count).bool() & there.unsqueeze(-1)
        return torch.where(hot.movedim(-1, axis), values[1], values[0])

    return run


def lower_trilu(view: View, torch: Any) -> Lowered:
    """Trilu: the upper or lower triangle."""
    keep = torch.triu if view.attr("upper", 1) else torch.tril
    read = scalar(view, 1, 0)
    return lambda *args: keep(args[0], int(read(args)))


def lower_reverse_sequence(view: View, torch: Any) -> Lowered:
    """ReverseSequence: the first `length` positions of each sequence are turned round."""
    time, batch = int(view.attr("time_axis", 0)), int(view.attr("batch_axis", 1))

    def run(x: Any, lengths: Any) -> Any:
        steps = torch.arange(x.shape[time], device=x.device)[:, None]
        places = torch.where(steps < lengths[None, :], lengths[None, :] - 1 - steps, steps)  # (time, batch)
        shape = [1] * x.dim()
        shape[time], shape[batch] = places.shape
        places = places if time < batch else places.transpose(0, 1)
        return torch.gather(x, time, places.reshape(shape).expand(x.shape))

    return run


def lower_unique(view: View, torch: Any) -> Lowered:
    """Unique: values, where each first stands, which value stands where, and counts."""
    axis, ordered = view.attr("axis"), bool(view.attr("sorted", 1))

    def run(x: Any) -> Any:
        array = x.detach().cpu().numpy()
        values, first, inverse, counts = np.unique(
            array, return_index=True, return_inverse=True, return_counts=True, axis=None if axis is None else int(axis)
        )
        if not ordered:
            order = np.argsort(first)
            rank = np.argsort(order)
            values = values[order] if axis is None else np.take(values, order, int(axis))
            first, counts, inverse = first[order], counts[order], rank[inverse]
        found = (values, first, inverse.reshape(-1), counts)
        return tuple(torch.from_numpy(np.ascontiguousarray(each)).to(x.device) for each in found)

    return run


def lower_center_crop_pad(view: View, torch: Any) -> Lowered:
    """CenterCropPad: each axis is cropped or padded with zeros on both sides to a length."""
    read = ints(view, "", 1)

    def run(*args: Any) -> Any:
        x, lengths = args[0], read(args) or ()
        before, after = [0] * x.dim(), [0] * x.dim()
        for axis, length in zip(view.attr("axes", range(x.dim())), lengths, strict=True):
            lack = length - x.shape[axis]
            # halves are rounded down both when cropping and when padding
            before[axis] = lack // 2 if lack >= 0 else -(-lack // 2)
            after[axis] = lack - before[axis]
        return torch.nn.functional.pad(x, torch_pads(before, after))

    return run


LOWER: dict[str, Lowering] = {
    "Concat": lower_concat,
    "Split": lower_split,
    "Slice": lower_slice,
    "Gather": lower_gather,
    "GatherElements": lower_gather_elements,
    "GatherND": lower_gather_nd,
    "Scatter": lower_scatter_elements,
    "ScatterElements": lower_scatter_elements,
    "ScatterND": lower_scatter_nd,
    "Pad": lower_pad,
    "Compress": lower_compress,
    "OneHot": lower_one_hot,
    "Trilu": lower_trilu,
    "ReverseSequence": lower_reverse_sequence,
    "Unique": lower_unique,
    "CenterCropPad": lower_center_crop_pad,
}
