"""The torch forms of pools and of operators that read a feature map at computed places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import View
from .resize_torch import lower_resize, lower_upsample
from .runtime import Lowered, Lowering, refuse, torch_pads, window


def _windows(view: View, sizes: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], ...]:
    """Strides, dilations, pads before, pads after, and what ceil_mode adds behind, for each axis.

    With ceil_mode a last window counts only where it begins inside the input or the pad before it (as ONNX Runtime).
    """
    strides, dilations, before, after = window(view, sizes, kernel)
    extra = [0] * len(sizes)
    if not view.attr("ceil_mode", 0):
        return strides, dilations, before, after, extra
    for axis, size in enumerate(sizes):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        free = size + before[axis] + after[axis] - reach
        count = -(-free // strides[axis]) + 1
        if (count - 1) * strides[axis] >= size + before[axis]:
            count -= 1
        extra[axis] = max((count - 1) * strides[axis] - free, 0)
    return strides, dilations, before, after, extra


def _add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def lower_max_pool(view: View, torch: Any) -> Lowered:
    """MaxPool: pads never win; the indices of the second output count through the whole input tensor."""
    kernel = [int(item) for item in view.attr("kernel_shape")]
    functional = torch.nn.functional
    pools = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
    if len(kernel) not in pools:
        raise refuse(view, f"a pool over {len(kernel)} axes; torch has 1 to 3")
    pool, indexed = pools[len(kernel)], len(view.node.outputs) > 1

    def run(x: Any) -> Any:
        strides, dilations, before, after, extra = _windows(view, x.shape[2:], kernel)
        dtype = x.dtype
        x = x if x.is_floating_point() else x.to(torch.float64)
        inside = before == _add(after, extra) and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True))
        if inside and not indexed:
            return pool(x, kernel, strides, before, dilations).to(dtype)
        padded = functional.pad(x, torch_pads(before, _add(after, extra)), value=-math.inf)
        if not indexed:
            return pool(padded, kernel, strides, 0, dilations).to(dtype)
        y, places = pool(padded, kernel, strides, 0, dilations, return_indices=True)
        return y.to(dtype), _whole_index(places, x.shape, padded.shape, before, bool(view.attr("storage_order", 0)))

    return run


def _whole_index(places: Any, shape: Any, padded: Any, before: Sequence[int], columns_first: bool) -> Any:
    """Indices within the padded map of one channel, as indices within the whole unpadded tensor."""
    coordinates: list[Any] = []
    for size, pad in zip(reversed(padded[2:]), reversed(before), strict=True):
        coordinates.insert(0, places % size - pad)
        places = places // size
    order = range(len(before)) if not columns_first else range(len(before) - 1, -1, -1)
    flat: Any = 0
    for axis in order:
        flat = flat * shape[2 + axis] + coordinates[axis]
    n, c, area = shape[0], shape[1], math.prod(shape[2:])
    start = flat.new_tensor(range(n * c)).reshape(n, c, *[1] * len(before)) * area
    return flat + start


def _window_sums(x: Any, kernel: Sequence[int], strides: Any, dilations: Any, torch: Any) -> Any:
    """The sum of x over each window, channel by channel."""
    functional = torch.nn.functional
    conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(kernel)]
    flat = x.reshape(-1, 1, *x.shape[2:])
    sums = conv(flat, flat.new_ones((1, 1, *kernel)), None, strides, 0, dilations)
    return sums.reshape(*x.shape[:2], *sums.shape[2:])


def lower_average_pool(view: View, torch: Any) -> Lowered:
    """AveragePool; pads count only with count_include_pad, what ceil_mode adds never does."""
    kernel = [int(item) for item in view.attr("kernel_shape")]
    functional = torch.nn.functional
    pools = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
    if len(kernel) not in pools:
        raise refuse(view, f"a pool over {len(kernel)} axes; torch has 1 to 3")
    count_pads = bool(view.attr("count_include_pad", 0))

    def run(x: Any) -> Any:
        strides, dilations, before, after, extra = _windows(view, x.shape[2:], kernel)
        inside = before == after and all(2 * pad <= size for pad, size in zip(before, kernel, strict=True))
        if inside and not any(extra) and set(dilations) == {1}:
            return pools[len(kernel)](x, kernel, strides, before, False, count_pads)
        ones = x.new_ones((1, 1, *x.shape[2:]))
        counted = functional.pad(ones, torch_pads(before, after), value=float(count_pads))
        counted = functional.pad(counted, torch_pads([0] * len(kernel), extra))
        x = functional.pad(x, torch_pads(before, _add(after, extra)))
        sums = _window_sums(x, kernel, strides, dilations, torch)
        return sums / _window_sums(counted, kernel, strides, dilations, torch)

    return run


def lower_lp_pool(view: View, torch: Any) -> Lowered:
    """LpPool: (the sum of |x|^p over the window) ^ (1 / p)."""
    kernel, p = [int(item) for item in view.attr("kernel_shape")], float(view.attr("p", 2))
    if len(kernel) > 3:
        raise refuse(view, f"a pool over {len(kernel)} axes; torch has 1 to 3")

    def run(x: Any) -> Any:
        strides, dilations, before, after, extra = _windows(view, x.shape[2:], kernel)
        powers = torch.nn.functional.pad(x.abs() ** p, torch_pads(before, _add(after, extra)))
        return _window_sums(powers, kernel, strides, dilations, torch) ** (1 / p)

    return run


def lower_global_pool(view: View, torch: Any) -> Lowered:
    """GlobalAveragePool and GlobalMaxPool."""
    largest = view.node.op_type == "GlobalMaxPool"

    def run(x: Any) -> Any:
        axes = list(range(2, x.dim()))
        return x.amax(axes, keepdim=True) if largest else x.mean(axes, keepdim=True)

    return run


def lower_global_lp_pool(view: View, torch: Any) -> Lowered:
    """GlobalLpPool."""
    p = float(view.attr("p", 2))
    return lambda x: (x.abs() ** p).sum(list(range(2, x.dim())), keepdim=True) ** (1 / p)


def lower_grid_sample(view: View, torch: Any) -> Lowered:
    """GridSample."""
    names = {"linear": "bilinear", "cubic": "bicubic"}
    mode = str(view.attr("mode", "linear" if view.version >= 20 else "bilinear"))
    mode = names.get(mode, mode)
    padding, corners = str(view.attr("padding_mode", "zeros")), bool(view.attr("align_corners", 0))
    sample = torch.nn.functional.grid_sample
    return lambda x, grid: sample(x, grid.to(x.dtype), mode=mode, padding_mode=padding, align_corners=corners)


def lower_roi_align(view: View, torch: Any) -> Lowered:
    """RoiAlign: the mean (or maximum) of bilinear samples in each bin of each box."""
    height, width = int(view.attr("output_height", 1)), int(view.attr("output_width", 1))
    ratio, scale = int(view.attr("sampling_ratio", 0)), float(view.attr("spatial_scale", 1.0))
    default = "half_pixel" if view.version >= 16 else "output_half_pixel"
    half = view.attr("coordinate_transformation_mode", default) == "half_pixel"
    largest = view.attr("mode", "avg") == "max"

    def axis(start: Any, length: Any, bins: int, size: int) -> tuple[Any, Any, Any, Any]:
        """Lower and upper rows, the weight of the upper, and which samples lie on the map: (bins * samples)."""
        samples = ratio if ratio > 0 else max(math.ceil(float(length) / bins), 1)
        at = start + (torch.arange(bins * samples, device=start.device) + 0.5) * (length / bins / samples)
        there = (at >= -1) & (at <= size)
        at = at.clamp(0, size - 1)
        low = at.floor().long()
        return low, (low + 1).clamp(max=size - 1), at - low, there

    def one(x: Any, box: Any) -> Any:
        shift = 0.5 if half else 0.0
        left, top, right, bottom = (box * scale - shift).unbind()
        lengths = [bottom - top, right - left]
        if not half:
            lengths = [length.clamp(min=1.0) for length in lengths]
        y0, y1, wy, ys = axis(top, lengths[0], height, x.shape[1])
        x0, x1, wx, xs = axis(left, lengths[1], width, x.shape[2])
        corners = [
            (rows[:, None], columns[None, :], a[:, None] * b[None, :])
            for rows, a in ((y0, 1 - wy), (y1, wy))
            for columns, b in ((x0, 1 - wx), (x1, wx))
        ]
        parts = torch.stack([x[:, r, c] * w for r, c, w in corners])  # (4, channels, rows, columns)
        inside = ys[:, None] & xs[None, :]
        bins = (x.shape[0], height, len(wy) // height, width, len(wx) // width)
        if largest:
            return (parts.amax(0) * inside).reshape(bins).amax((2, 4))
        return (parts.sum(0) * inside).reshape(bins).mean((2, 4))

    def run(x: Any, rois: Any, batch: Any) -> Any:
        found = [one(x[index], box) for index, box in zip(batch.tolist(), rois, strict=True)]
        return torch.stack(found) if found else x.new_zeros((0, x.shape[1], height, width))

    return run


def lower_max_roi_pool(view: View, torch: Any) -> Lowered:
    """MaxRoiPool: the maximum of each bin of each box (batch, left, top, right, bottom), in whole pixels."""
    height, width = (int(item) for item in view.attr("pooled_shape"))
    scale = float(view.attr("spatial_scale", 1.0))

    def edges(start: int, end: int, bins: int, size: int) -> list[tuple[int, int]]:
        step = max(end - start + 1, 1) / bins
        found = [(start + math.floor(i * step), start + math.ceil((i + 1) * step)) for i in range(bins)]
        return [(min(max(a, 0), size), min(max(b, 0), size)) for a, b in found]

    def one(x: Any, roi: Sequence[float]) -> Any:
        left, top, right, bottom = (math.floor(value * scale + 0.5) for value in roi[1:])
        image = x[int(roi[0])]
        rows = []
        for a, b in edges(top, bottom, height, x.shape[2]):
            bins = [image[:, a:b, c:d] for c, d in edges(left, right, width, x.shape[3])]
            rows.append([part.amax((1, 2)) if part.numel() else image.new_zeros(image.shape[0]) for part in bins])
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    return lambda x, rois: torch.stack([one(x, roi) for roi in rois.tolist()])


def lower_max_unpool(view: View, torch: Any) -> Lowered:
    """MaxUnpool: each value goes to its index in the whole output tensor; the rest is 0."""
    kernel = [int(item) for item in view.attr("kernel_shape")]

    def run(x: Any, index: Any, shape: Any = None) -> Any:
        strides, _, before, after = window(view, x.shape[2:], kernel)
        natural = [
            (size - 1) * stride - a - b + k
            for size, stride, a, b, k in zip(x.shape[2:], strides, before, after, kernel, strict=True)
        ]
        inner = (*x.shape[:2], *natural)
        y = x.new_zeros(math.prod(inner)).scatter(0, index.reshape(-1), x.reshape(-1)).reshape(inner)
        if shape is None:
            return y
        target = shape.tolist()
        ends = [t - s for t, s in zip(target, inner, strict=True)]
        return torch.nn.functional.pad(y, torch_pads([0] * len(target), ends))

    return run


LOWER: dict[str, Lowering] = {
    "MaxPool": lower_max_pool,
    "AveragePool": lower_average_pool,
    "LpPool": lower_lp_pool,
    "GlobalMaxPool": lower_global_pool,
    "GlobalAveragePool": lower_global_pool,
    "GlobalLpPool": lower_global_lp_pool,
    "Resize": lower_resize,
    "Upsample": lower_upsample,
    "RoiAlign": lower_roi_align,
    "MaxRoiPool": lower_max_roi_pool,
    "GridSample": lower_grid_sample,
    "MaxUnpool": lower_max_unpool,
}
