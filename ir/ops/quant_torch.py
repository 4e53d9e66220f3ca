"""The torch forms of quantization: rounding lets the gradient through, clipping stops it.

QuantizeLinear: q = clip(round(x / scale) + zero); DequantizeLinear: x = (q - zero) * scale. A weight of integers is
trained as a float32 master in its own units; it comes here as floats that hold whole numbers (`on_grid`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from . import View
from .runtime import NARROW_FLOATS, RANGES, Lowered, Lowering, narrowed, refuse, round_through

_T = onnx.TensorProto


def on_grid(x: Any, limits: tuple[int, int], torch: Any) -> Any:
    """A master of integers, rounded and clipped to their type."""
    return torch.clamp(round_through(x, torch), *limits)


def shifted(x: Any, zero: Any, axis: int) -> Any:
    """x minus a zero point, which is one number or one for each position of an axis."""
    if zero is None:
        return x
    shape = [1] * x.dim()
    if zero.numel() > 1:
        shape[axis] = -1
    return x - zero.to(x.dtype).reshape(shape)


def requantize(view: View, torch: Any, zero_slot: int) -> Callable[..., Any]:
    """A function (sums, multiplier, zero point) -> values on the grid of the zero point's type."""
    low, high = RANGES[_type_of(view, zero_slot) or _T.UINT8]

    def run(y: Any, scale: Any, zero: Any) -> Any:
        y = round_through(y.to(torch.float32) * scale.to(torch.float32), torch) + zero.to(torch.float32)
        return torch.clamp(y, low, high)

    return run


def _type_of(view: View, slot: int) -> int | None:
    """The ONNX element type of an input; None when it is missing or unknown."""
    if not view.has(slot):
        return None
    name = view.node.inputs[slot]
    if name in view.graph.constants:
        return int(view.graph.constants[name].proto.data_type)
    return view.graph.dtypes.get(name)


def _grid(view: View) -> int:
    """The element type that a QuantizeLinear makes."""
    dtype = _type_of(view, 2) or int(view.attr("output_dtype", 0)) or view.graph.dtypes.get(view.node.outputs[0], 0)
    return dtype or _T.UINT8


def _spread(view: View) -> Callable[[Any, Any], Any]:
    """A function (parameter, x) -> the scale or zero point in a shape that broadcasts over x; blocks are repeated."""
    block = int(view.attr("block_size", 0))

    def run(value: Any, x: Any) -> Any:
        if value.dim() == 0 or value.numel() == 1:
            return value.reshape(())
        axis = view.axis(1, x.dim())
        if block and value.dim() == x.dim():
            return value.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
        shape = [1] * x.dim()
        shape[axis] = -1
        return value.reshape(shape)

    return run


def lower_quantize(view: View, torch: Any) -> Lowered:
    """QuantizeLinear, per tensor, per axis or per block; the values stay floats that hold whole numbers."""
    dtype, spread = _grid(view), _spread(view)
    if dtype not in RANGES:
        return _narrow_float(view, torch, dtype, spread)
    low, high = RANGES[dtype]

    def run(x: Any, scale: Any, zero: Any = None) -> Any:
        step = spread(scale, x)
        y = x / step.to(x.dtype) if x.is_floating_point() else x.to(torch.float32) / step
        y = round_through(y, torch)
        if zero is not None:
            y = y + spread(zero, x).to(y.dtype)
        return torch.clamp(y, low, high)

    return run


def _narrow_float(view: View, torch: Any, dtype: int, spread: Callable[[Any, Any], Any]) -> Lowered:
    if dtype not in NARROW_FLOATS:
        raise refuse(view, f"it quantizes to {_T.DataType.Name(dtype)}")
    return lambda x, scale, zero=None: narrowed(x / spread(scale, x), dtype, torch)


def lower_dequantize(view: View, torch: Any) -> Lowered:
    """DequantizeLinear."""
    spread = _spread(view)

    def run(x: Any, scale: Any, zero: Any = None) -> Any:
        if not x.is_floating_point():
            x = x.to(scale.dtype)
        if zero is not None:
            x = x - spread(zero, x).to(x.dtype)
        return x * spread(scale, x)

    return run


def lower_dynamic_quantize(view: View, torch: Any) -> Lowered:
    """DynamicQuantizeLinear: y, scale and zero point from the range of x widened to hold 0."""

    def run(x: Any) -> Any:
        low, high = torch.clamp(x.min(), max=0.0), torch.clamp(x.max(), min=0.0)
        scale = (high - low) / 255
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        zero = round_through(torch.clamp(-low / scale, 0, 255), torch)
        return torch.clamp(round_through(x / scale, torch) + zero, 0, 255), scale, zero

    return run


LOWER: dict[str, Lowering] = {
    "QuantizeLinear": lower_quantize,
    "DequantizeLinear": lower_dequantize,
    "DynamicQuantizeLinear": lower_dynamic_quantize,
}
