"""The torch forms of operators whose result's size or places come from values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import View
from .runtime import Lowered, Lowering, ints, scalar, torch_pads, window


def lower_non_zero(view: View, torch: Any) -> Lowered:
    """NonZero: the places, one row for each axis."""
    return lambda x: torch.nonzero(x).transpose(0, 1)


def lower_non_max_suppression(view: View, torch: Any) -> Lowered:
    """NonMaxSuppression: (batch, class, box) of the boxes kept, best first within each class."""
    centred = bool(view.attr("center_point_box", 0))
    read_most, read_overlap, read_score = scalar(view, 2, 0), scalar(view, 3, 0.0), scalar(view, 4)

    def corners(boxes: Any) -> Any:
        if centred:
            x, y, w, h = boxes.unbind(-1)
            return torch.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1)
        low = torch.minimum(boxes[:, :2], boxes[:, 2:])
        return torch.cat([low, torch.maximum(boxes[:, :2], boxes[:, 2:])], -1)

    def overlaps(box: Any, boxes: Any) -> Any:
        sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
        shared = sides.clamp(min=0).prod(-1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        union = (box[2:] - box[:2]).prod() + areas - shared
        return torch.where(union > 0, shared / union, torch.zeros_like(union))

    def kept(boxes: Any, scores: Any, most: int, limit: float, least: float | None) -> list[int]:
        order = torch.argsort(scores, descending=True, stable=True)
        if least is not None:
            order = order[scores[order] > least]
        chosen: list[int] = []
        while len(order) and len(chosen) < most:
            chosen.append(int(order[0]))
            order = order[1:][overlaps(boxes[order[0]], boxes[order[1:]]) <= limit]
        return chosen

    def run(*args: Any) -> Any:
        boxes, scores = args[0], args[1]
        most, limit, least = int(read_most(args)), float(read_overlap(args)), read_score(args)
        least = None if least is None else float(least)
        rows = [
            (b, c, place)
            for b in range(scores.shape[0])
            for c in range(scores.shape[1])
            for place in kept(corners(boxes[b]), scores[b, c], most, limit, least)
        ]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)

    return run


def lower_tensor_scatter(view: View, torch: Any) -> Lowered:
    """TensorScatter: an update written into a cache at a place of its own for each sample."""
    circular = view.attr("mode", "linear") == "circular"

    def run(past: Any, update: Any, start: Any = None) -> Any:
        axis = view.axis(-2, past.dim())
        begin = torch.zeros(past.shape[0], dtype=torch.int64) if start is None else start
        places = begin[:, None] + torch.arange(update.shape[axis], device=begin.device)
        places = torch.remainder(places, past.shape[axis]) if circular else places
        shape = [1] * past.dim()
        shape[0], shape[axis] = places.shape
        return past.scatter(axis, places.reshape(shape).expand(update.shape), update)

    return run


def lower_col2im(view: View, torch: Any) -> Lowered:
    """Col2Im: blocks laid back into an image of any number of axes, summed where they overlap."""
    read_image, read_block = ints(view, "", 1), ints(view, "", 2)

    def run(*args: Any) -> Any:
        x, image, block = args[0], read_image(args) or (), read_block(args) or ()
        strides, dilations, before, after = window(view, image, block)
        counts = [
            (size + a + b - (k - 1) * d - 1) // s + 1
            for size, a, b, k, d, s in zip(image, before, after, block, dilations, strides, strict=True)
        ]
        columns = x.reshape(x.shape[0], -1, *block, *counts)
        padded = [size + a + b for size, a, b in zip(image, before, after, strict=True)]
        y = x.new_zeros((*columns.shape[:2], *padded))
        for place in _places(block):
            spans = [
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(place, dilations, counts, strides, strict=True)
            ]
            y[(slice(None), slice(None), *spans)] += columns[(slice(None), slice(None), *place)]
        return torch.nn.functional.pad(y, torch_pads([-pad for pad in before], [-pad for pad in after]))

    return run


def _places(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in sizes:
        found = [(*place, number) for place in found for number in range(size)]
    return found


def lower_deform_conv(view: View, torch: Any) -> Lowered:
    """DeformConv over images: each tap of the kernel reads at a place of its own, bilinearly, zeros outside."""
    group, offset_groups = int(view.attr("group", 1)), int(view.attr("offset_group", 1))

    def run(x: Any, w: Any, offset: Any, b: Any = None, mask: Any = None) -> Any:
        kernel = tuple(w.shape[2:])
        strides, dilations, before, _ = window(view, x.shape[2:], kernel)
        n, c, h, wide = x.shape
        rows, columns = offset.shape[2:]
        taps = math.prod(kernel)
        shift = offset.reshape(n, offset_groups, taps, 2, rows, columns)
        base = [
            torch.arange(count, device=x.device, dtype=x.dtype) * stride - pad
            for count, stride, pad in zip((rows, columns), strides, before, strict=True)
        ]
        read = []
        for tap, (i, j) in enumerate(_places(kernel)):
            at_y = base[0][:, None] + i * dilations[0] + shift[:, :, tap, 0]
            at_x = base[1][None, :] + j * dilations[1] + shift[:, :, tap, 1]
            found = _bilinear(x.reshape(n, offset_groups, c // offset_groups, h, wide), at_y, at_x, torch)
            if mask is not None:
                found = found * mask.reshape(n, offset_groups, taps, rows, columns)[:, :, tap, None]
            read.append(found.reshape(n, c, rows, columns))
        values = torch.stack(read, 2).reshape(n, group, c // group * taps, rows * columns)
        weight = w.reshape(group, w.shape[0] // group, -1)
        y = torch.einsum("ngkp,gok->ngop", values, weight).reshape(n, w.shape[0], rows, columns)
        return y if b is None else y + b.reshape(1, -1, 1, 1)

    return run


def _bilinear(x: Any, at_y: Any, at_x: Any, torch: Any) -> Any:
    """x (n, g, c, h, w) read at places (n, g, rows, columns), zero outside: (n, g, c, rows, columns)."""
    height, width = x.shape[-2:]
    flat, total = x.flatten(-2), 0
    for lower_y in (True, False):
        for lower_x in (True, False):
            y = at_y.floor() if lower_y else at_y.floor() + 1
            z = at_x.floor() if lower_x else at_x.floor() + 1
            weight = (1 - (at_y - y).abs()) * (1 - (at_x - z).abs())
            inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
            place = (y.clamp(0, height - 1) * width + z.clamp(0, width - 1)).long().flatten(-2).unsqueeze(2)
            found = torch.gather(flat, 3, place.expand(-1, -1, x.shape[2], -1))
            total = total + found.unflatten(-1, at_y.shape[-2:]) * (weight * inside).unsqueeze(2)
    return total


LOWER: dict[str, Lowering] = {
    "Col2Im": lower_col2im,
    "DeformConv": lower_deform_conv,
    "NonMaxSuppression": lower_non_max_suppression,
    "NonZero": lower_non_zero,
    "TensorScatter": lower_tensor_scatter,
}
