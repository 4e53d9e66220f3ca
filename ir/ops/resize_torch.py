"""The torch form of Resize: for every axis a sparse matrix (output positions x input positions), worked out in numpy.

The coordinates are computed in float32 and in ONNX Runtime's order of operations, so that ties fall to the same side.
Each axis that changes is read at k neighbours (1 nearest, 2 linear, 4 cubic, more with antialias) with their weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import View
from .runtime import Lowered, ints

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taps:
    """What each output position of an axis reads: positions and weights (outputs, k), and which are outside."""

    index: NDArray[np.int64]
    weight: Floats
    outside: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Way:
    """How a Resize reads: its attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool
    extrapolation: float


def lower_resize(view: View, torch: Any) -> Lowered:
    """Resize in every mode, from scales or sizes."""
    old = view.version < 11
    way = _Way(
        mode=str(view.attr("mode", "nearest")),
        coordinates="asymmetric" if old else str(view.attr("coordinate_transformation_mode", "half_pixel")),
        nearest="simple" if old else str(view.attr("nearest_mode", "round_prefer_floor")),
        cubic_a=float(view.attr("cubic_coeff_a", -0.75)),
        exclude_outside=bool(view.attr("exclude_outside", 0)),
        antialias=bool(view.attr("antialias", 0)),
        extrapolation=float(view.attr("extrapolation_value", 0.0)),
    )
    read_scales, read_roi = _floats(view, 1 if old else 2), _floats(view, 1)
    read_sizes = ints(view, "", 3) if not old else lambda args: None
    policy = str(view.attr("keep_aspect_ratio_policy", "stretch"))

    def run(*args: Any) -> Any:
        x = args[0]
        axes = [int(axis) % x.dim() for axis in view.attr("axes", range(x.dim()))]
        lengths = [x.shape[axis] for axis in axes]
        scales, sizes = _target(lengths, read_scales(args), read_sizes(args), policy)
        roi = read_roi(args) if way.coordinates == "tf_crop_and_resize" else None
        spans = list(zip(roi[: len(axes)], roi[len(axes) :], strict=True)) if roi else [(0.0, 1.0)] * len(axes)
        return _resize(x, axes, scales, sizes, spans, way, torch)

    return run


def lower_upsample(view: View, torch: Any) -> Lowered:
    """Upsample: scales from an attribute (opset 7) or an input; positions are rounded down."""
    way = _Way(str(view.attr("mode", "nearest")), "asymmetric", "simple", -0.75, False, False, 0.0)
    if "scales" in view.node.attrs:
        fixed = tuple(float(item) for item in view.attr("scales"))
        read: Callable[[Sequence[Any]], tuple[float, ...] | None] = lambda args: fixed  # noqa: E731
    else:
        read = _floats(view, 1)

    def run(*args: Any) -> Any:
        x = args[0]
        scales, sizes = _target(list(x.shape), read(args), None, "stretch")
        return _resize(x, list(range(x.dim())), scales, sizes, [(0.0, 1.0)] * x.dim(), way, torch)

    return run


def _floats(view: View, slot: int) -> Callable[[Sequence[Any]], tuple[float, ...] | None]:
    """A reader of floats that an input holds; None when it is missing or empty."""
    if not view.has(slot):
        return lambda args: None
    value = view.value(slot)
    if value is not None:
        static = tuple(float(item) for item in value.reshape(-1)) or None
        return lambda args: static
    return lambda args: tuple(args[slot].reshape(-1).tolist()) or None


def _target(
    lengths: Sequence[int], scales: Sequence[float] | None, sizes: Sequence[int] | None, policy: str
) -> tuple[list[float], list[int]]:
    """Scale and output length of each axis."""
    if not sizes:
        given = [np.float32(scale) for scale in scales or [1.0] * len(lengths)]
        return [float(s) for s in given], [math.floor(s * np.float32(n)) for s, n in zip(given, lengths, strict=True)]
    ratios = [size / length for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return ratios, list(sizes)
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [ratio] * len(sizes), [math.floor(ratio * length + 0.5) for length in lengths]


def _resize(
    x: Any,
    axes: Sequence[int],
    scales: Sequence[float],
    sizes: Sequence[int],
    spans: Sequence[tuple[float, float]],
    way: _Way,
    torch: Any,
) -> Any:
    cropped = way.coordinates == "tf_crop_and_resize"
    todo = [
        (axis, taps(x.shape[axis], size, scale, span, way))
        for axis, scale, size, span in zip(axes, scales, sizes, spans, strict=True)
        if size != x.shape[axis] or scale != 1.0 or (cropped and span != (0.0, 1.0))
    ]
    quick = _interpolate(x, todo, way, torch)
    if quick is not None:
        return quick
    dtype = x.dtype
    if way.mode != "nearest" and not x.is_floating_point():
        x = x.to(torch.float32)
    for axis, tap in todo:
        x = _read(x, axis, tap, torch)
    for axis, tap in todo if cropped else ():
        shape = [1] * x.dim()
        shape[axis] = -1
        outside = torch.from_numpy(tap.outside).to(x.device).reshape(shape)
        x = torch.where(outside, x.new_tensor(way.extrapolation), x)
    return x if x.dtype == dtype else torch.round(x).to(dtype)


def _interpolate(x: Any, todo: Sequence[tuple[int, Taps]], way: _Way, torch: Any) -> Any:
    """torch's own kernel for images where it reads the very same pixels; else None."""
    if x.dim() != 4 or not todo or {axis for axis, _ in todo} - {2, 3} or not x.is_floating_point():
        return None
    by_axis = dict(todo)
    sizes = [len(by_axis[axis].index) if axis in by_axis else x.shape[axis] for axis in (2, 3)]
    if way.mode == "nearest":
        factors = [size // length for size, length in zip(sizes, x.shape[2:], strict=True)]
        if any(size % length for size, length in zip(sizes, x.shape[2:], strict=True)):
            return None
        if any(not np.array_equal(t.index[:, 0], np.arange(len(t.index)) // factors[a - 2]) for a, t in todo):
            return None
        return torch.nn.functional.interpolate(x, size=sizes, mode="nearest")
    if way.mode != "linear" or way.antialias:
        return None
    for corners in (False, True):
        if all(_same_as_torch(tap, x.shape[axis], corners) for axis, tap in todo):
            return torch.nn.functional.interpolate(x, size=sizes, mode="bilinear", align_corners=corners)
    return None


def _same_as_torch(tap: Taps, length: int, corners: bool) -> bool:
    """Whether torch's bilinear kernel reads the same positions with the same weights."""
    out = len(tap.index)
    at = np.arange(out, dtype=np.float64)
    if corners:
        at = at * ((length - 1) / (out - 1) if out > 1 else 0.0)
    else:
        at = np.maximum((at + 0.5) * (length / out) - 0.5, 0)
    found = (tap.index * tap.weight.astype(np.float64)).sum(1)
    return tap.index.shape[1] == 2 and bool(np.abs(found - np.minimum(at, length - 1)).max() < 1e-5 * max(length, 1))


def _read(x: Any, axis: int, tap: Taps, torch: Any) -> Any:
    index = torch.from_numpy(tap.index).to(x.device)
    if tap.index.shape[1] == 1 and (tap.weight == 1).all():
        return x.index_select(axis, index[:, 0])
    shape = [1] * x.dim()
    shape[axis] = -1
    weight = torch.from_numpy(tap.weight).to(x.device, x.dtype)
    parts = (x.index_select(axis, index[:, k]) * weight[:, k].reshape(shape) for k in range(tap.index.shape[1]))
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def taps(length: int, size: int, scale: float, span: tuple[float, float], way: _Way) -> Taps:
    """What an axis of `size` outputs reads of an axis of `length` inputs."""
    at = _coordinates(length, size, np.float32(scale), span, way.coordinates)
    outside = (at < 0) | (at > length - 1)
    if way.mode == "nearest":
        index = _nearest(at, way.nearest, down=scale < 1)[:, None]
        return Taps(index.clip(0, length - 1), np.ones(index.shape, np.float32), outside)
    if way.antialias and scale < 1:
        return _antialiased(at, length, scale, way, outside)
    if way.mode == "linear":
        at = at.clip(0, length - 1)
        low = np.floor(at).astype(np.int64)
        rest = (at - low).astype(np.float32)
        index = np.stack([low, np.minimum(low + 1, length - 1)], 1)
        return Taps(index, np.stack([1 - rest, rest], 1), outside)
    low = np.floor(at).astype(np.int64)
    index = low[:, None] + np.arange(-1, 3)
    weight = _cubic((at[:, None] - index).astype(np.float64), way.cubic_a)
    return _bounded(index, weight, length, way, outside)


def _bounded(
    index: NDArray[np.int64], weight: NDArray[np.float64], length: int, way: _Way, outside: NDArray[np.bool_]
) -> Taps:
    """Positions outside the axis read its edge, or nothing when exclude_outside is set."""
    if way.exclude_outside:
        weight = np.where((index < 0) | (index >= length), 0.0, weight)
        weight = weight / weight.sum(1, keepdims=True)
    return Taps(index.clip(0, length - 1), weight.astype(np.float32), outside)


def _antialiased(at: Floats, length: int, scale: float, way: _Way, outside: NDArray[np.bool_]) -> Taps:
    """The filter is stretched by 1 / scale, so that every input position counts."""
    reach = (1.0 if way.mode == "linear" else 2.0) / scale
    first = np.floor(at - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(2 * math.ceil(reach) + 1)
    distance = (index - at[:, None].astype(np.float64)) * scale
    weight = np.clip(1 - np.abs(distance), 0, 1) if way.mode == "linear" else _cubic(distance, way.cubic_a)
    weight = weight / weight.sum(1, keepdims=True)
    return _bounded(index, weight, length, way, outside)


def _coordinates(length: int, size: int, scale: np.float32, span: tuple[float, float], mode: str) -> Floats:
    """The input coordinate of every output position."""
    f, x = np.float32, np.arange(size, dtype=np.float32)
    if mode == "align_corners":
        return x * f(length - 1) / f(size - 1) if size > 1 else x * f(0)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + f(0.5)) / scale
    if mode == "pytorch_half_pixel":
        return (x + f(0.5)) / scale - f(0.5) if size > 1 else x * f(0)
    if mode == "tf_crop_and_resize":
        start, end = f(span[0]), f(span[1])
        if size > 1:
            return start * f(length - 1) + (x * (end - start) * f(length - 1)) / f(size - 1)
        return f(0.5) * (start + end) * f(length - 1) + x * f(0)
    if mode == "half_pixel_symmetric":
        offset = f(length) / f(2) * (f(1) - f(size) / (scale * f(length)))
        # ONNX Runtime adds these up in float64
        return (np.float64(offset) + (x.astype(np.float64) + 0.5) / np.float64(scale) - 0.5).astype(np.float32)
    return (x + f(0.5)) / scale - f(0.5)


def _nearest(at: Floats, mode: str, *, down: bool) -> NDArray[np.int64]:
    if mode == "simple":
        found = np.ceil(at) if down else np.trunc(at)
    elif mode == "floor":
        found = np.floor(at)
    elif mode == "ceil":
        found = np.ceil(at)
    else:
        whole = np.trunc(at)
        away = np.sign(at) * np.floor(np.abs(at) + np.float32(0.5))
        found = np.where(at == whole + np.float32(0.5), whole, away) if mode == "round_prefer_floor" else away
    return found.astype(np.int64)


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
