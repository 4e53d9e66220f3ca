"""What the torch forms of operators share: steering integers, paddings, element types, rounding with a gradient.

The lowerings stand beside their family's rules in `<family>_torch.py`. They never shape or scale a parameter when they
are built, and they read sizes from the tensors they are given, so that one program serves many input shapes. Integers
that steer an operator (axes, pads, a target shape) are read once where the graph knows them, else at each call.

Element types: 16-bit and 8-bit floats are carried as float32, wide unsigned integers as int64, 4-bit ones as int8 or
uint8; quantized values may be carried as floats that hold whole numbers, so that gradients pass through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..errors import UnsupportedOp
from . import View

Ints = Callable[[Sequence[Any]], tuple[int, ...] | None]
Lowered = Callable[..., Any]
Lowering = Callable[[View, Any], Lowered]

_T = onnx.TensorProto
NARROW_FLOATS = frozenset(
    {_T.FLOAT16, _T.BFLOAT16, _T.FLOAT8E4M3FN, _T.FLOAT8E4M3FNUZ, _T.FLOAT8E5M2, _T.FLOAT8E5M2FNUZ, 23, 24}
)
"""ONNX types that are carried as float32 (23 and 24 are FLOAT4E2M1 and FLOAT8E8M0)."""

FLOAT8E8M0 = 24

RANGES = {
    _T.UINT8: (0, 255), _T.INT8: (-128, 127), _T.UINT16: (0, 65535), _T.INT16: (-32768, 32767),
    _T.INT32: (-(2**31), 2**31 - 1), _T.UINT4: (0, 15), _T.INT4: (-8, 7), 25: (0, 3), 26: (-2, 1),
}  # fmt: skip
"""The least and greatest value of each integer type that quantization uses (25 and 26 are UINT2 and INT2)."""

_CARRIERS = {
    _T.FLOAT: "float32", _T.DOUBLE: "float64", _T.BOOL: "bool", _T.INT8: "int8", _T.UINT8: "uint8", _T.INT16: "int16",
    _T.INT32: "int32", _T.INT64: "int64", _T.UINT16: "int64", _T.UINT32: "int64", _T.UINT64: "int64",
    _T.INT4: "int8", _T.UINT4: "uint8", 25: "uint8", 26: "int8", _T.COMPLEX64: "complex64",
    _T.COMPLEX128: "complex128", **dict.fromkeys(NARROW_FLOATS, "float32"),
}  # fmt: skip


def carrier(dtype: int, torch: Any) -> Any:
    """The torch type that carries an ONNX element type; UnsupportedOp for strings."""
    if dtype not in _CARRIERS:
        raise UnsupportedOp(f"element type {onnx.TensorProto.DataType.Name(dtype)} has no torch form")
    return getattr(torch, _CARRIERS[dtype])


def as_tensor(array: NDArray[Any], torch: Any) -> Any:
    """A torch tensor of an array, in the type that carries its elements; the array itself where it holds strings."""
    if array.dtype.kind in "OUS":
        return array
    name = _CARRIERS[onnx.helper.np_dtype_to_tensor_dtype(array.dtype)]
    return torch.from_numpy(np.array(array.astype(name, copy=False), order="C"))


def ints(view: View, name: str, slot: int, default: Sequence[int] | None = None) -> Ints:
    """A reader of integers that an attribute or an input holds, as a function of the node's input tensors."""
    static = view.ints(name, slot, default)
    if static is not None or name in view.node.attrs or not view.has(slot):
        return lambda args: static
    spare = None if default is None else tuple(default)

    def read(args: Sequence[Any]) -> tuple[int, ...] | None:
        given = slot < len(args) and args[slot] is not None
        return tuple(int(item) for item in args[slot].reshape(-1).tolist()) if given else spare

    return read


def scalar(view: View, slot: int, default: Any = None) -> Callable[[Sequence[Any]], Any]:
    """A reader of a number that an input holds: known when built, or a tensor of one element at each call."""
    if not view.has(slot):
        return lambda args: default
    value = view.value(slot)
    if value is not None:
        number = value.reshape(-1)[0].item() if value.size else default
        return lambda args: number
    return lambda args: (
        default if slot >= len(args) or args[slot] is None or not args[slot].numel() else args[slot].reshape(-1)[0]
    )


def refuse(view: View, reason: str) -> UnsupportedOp:
    """The error for a node that torch cannot run as it is, to be raised."""
    return UnsupportedOp(f"node '{view.node.label}' ({view.node.op_type}) has no torch form: {reason}")


def same_pads(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """The pads before and after one axis for auto_pad SAME_UPPER or SAME_LOWER: ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def window(
    view: View, sizes: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads before and pads after of a sliding window over axes of the given sizes."""
    rank = len(sizes)
    strides = [int(item) for item in view.attr("strides", [1] * rank)]
    dilations = [int(item) for item in view.attr("dilations", [1] * rank)]
    auto = view.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        upper = auto == "SAME_UPPER"
        both = [same_pads(*each, upper=upper) for each in zip(sizes, kernel, strides, dilations, strict=True)]
        return strides, dilations, [pair[0] for pair in both], [pair[1] for pair in both]
    pads = [0] * (2 * rank) if auto == "VALID" else [int(item) for item in view.attr("pads", [0] * (2 * rank))]
    return strides, dilations, pads[:rank], pads[rank:]


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: the last axis first, before and after side by side."""
    return [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]


def round_through(x: Any, torch: Any) -> Any:
    """x rounded to even, with the gradient of the identity (straight-through)."""
    return x + (torch.round(x) - x).detach() if x.requires_grad else torch.round(x)


def narrowed(x: Any, dtype: int, torch: Any, *, saturate: bool = True, round_mode: str = "up") -> Any:
    """x rounded to a narrow float type and carried on as it was, with the gradient of the identity.

    `round_mode` holds for FLOAT8E8M0, which has powers of two only; the other types round to even.
    """
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    array = x.detach().cpu().to(torch.float32).numpy()
    if saturate and dtype in _SATURATING:
        limit = float(ml_limits(kind)[1])
        array = np.where(np.isnan(array), array, np.clip(array, -limit, limit))
    powers = dtype == FLOAT8E8M0
    codes = onnx.numpy_helper.to_float8e8m0(array, saturate, round_mode) if powers else array.astype(kind)
    found = torch.from_numpy(codes.astype(np.float32)).to(x.device, x.dtype)
    return x + (found - x).detach() if x.requires_grad else found


_SATURATING = NARROW_FLOATS - {_T.FLOAT16, _T.BFLOAT16}


def ml_limits(kind: np.dtype[Any]) -> tuple[float, float]:
    """The least and greatest finite values of a narrow float type."""
    codes = np.arange(2 ** (8 if kind.itemsize == 1 and kind.name != "float4_e2m1fn" else 4), dtype=np.uint8)
    values = codes.view(kind).astype(np.float64)
    finite = values[np.isfinite(values)]
    return float(finite.min()), float(finite.max())
