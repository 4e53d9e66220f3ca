"""The torch forms of operators that work on each element alone."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from . import View
from .runtime import NARROW_FLOATS, RANGES, Lowered, Lowering, as_tensor, carrier, narrowed, refuse, scalar

_T = onnx.TensorProto


def _plain(name: str) -> Lowering:
    """For operators that are one torch function of the same operands."""
    return lambda view, torch: getattr(torch, name)


def _formula(function: Callable[..., Any], **defaults: Any) -> Lowering:
    """For `function(torch, x, *attributes)`; the attributes are taken by name, with their defaults."""

    def lower(view: View, torch: Any) -> Lowered:
        values = [view.attr(name, default) for name, default in defaults.items()]
        return lambda x: function(torch, x, *values)

    return lower


def _fold(function: str) -> Lowering:
    """For operators of any number of operands that are a chain of a binary torch function."""

    def lower(view: View, torch: Any) -> Lowered:
        binary = getattr(torch, function)
        return lambda *args: functools.reduce(binary, args)

    return lower


def lower_mean(view: View, torch: Any) -> Lowered:
    """Mean of any number of operands."""
    return lambda *args: functools.reduce(torch.add, args) / len(args)


def lower_div(view: View, torch: Any) -> Lowered:
    """Div; integers are divided towards zero."""

    def run(a: Any, b: Any) -> Any:
        return a / b if a.is_floating_point() or b.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


def lower_equal(view: View, torch: Any) -> Lowered:
    """Equal, of numbers or of texts."""

    def run(a: Any, b: Any) -> Any:
        return torch.from_numpy(np.asarray(a == b)) if isinstance(a, np.ndarray) else torch.eq(a, b)

    return run


def lower_mod(view: View, torch: Any) -> Lowered:
    """Mod: the sign of the divisor, or with fmod that of the dividend."""
    found: Lowered = torch.fmod if view.attr("fmod", 0) else torch.remainder
    return found


def lower_pow(view: View, torch: Any) -> Lowered:
    """Pow: the result has the base's type. A known exponent is a number, so that torch can square or take roots."""
    known = view.value(1)
    number = known.reshape(-1)[0].item() if known is not None and known.size == 1 and known.ndim == 0 else None

    def run(x: Any, e: Any) -> Any:
        power = e if number is None else number
        if x.is_floating_point():
            return torch.pow(x, power)
        return torch.pow(x.to(torch.float64), power).to(x.dtype)

    return run


def lower_cast(view: View, torch: Any) -> Lowered:
    """Cast and, with the second operand's type, CastLike."""
    way = {"saturate": bool(view.attr("saturate", 1)), "round_mode": str(view.attr("round_mode", "up"))}
    if "to" in view.node.attrs:
        return _caster(int(view.attr("to")), torch, way)
    dtype = view.graph.dtypes.get(view.node.inputs[1])
    if dtype is not None:
        cast = _caster(dtype, torch, way)
        return lambda x, like: cast(x)
    return lambda x, like: x.to(like.dtype)


def _caster(dtype: int, torch: Any, way: Mapping[str, Any]) -> Lowered:
    target = carrier(dtype, torch)
    halves: dict[int, Any] = {_T.FLOAT16: torch.float16, _T.BFLOAT16: torch.bfloat16}
    rounding = halves.get(dtype)

    def run(x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return torch.from_numpy(x.astype(np.float64)).to(target)
        if rounding is not None:
            # the gradient passes through both conversions
            return x.to(rounding).to(target)
        if dtype in NARROW_FLOATS:
            return narrowed(x.to(target), dtype, torch, **way)
        if dtype in RANGES and x.dtype != torch.bool and target in (torch.int64, torch.int8, torch.uint8):
            return _wrap(x, dtype, torch).to(target)
        return x.to(target)

    return run


def _wrap(x: Any, dtype: int, torch: Any) -> Any:
    """Whole numbers modulo the size of a narrow integer type, as a conversion of bits does."""
    low, high = RANGES[dtype]
    whole = torch.trunc(x).to(torch.int64) if x.is_floating_point() else x.to(torch.int64)
    return torch.remainder(whole - low, high - low + 1) + low


def lower_bit_cast(view: View, torch: Any) -> Lowered:
    """BitCast: the same bits as another type of the same width."""
    source = view.graph.dtypes.get(view.node.inputs[0])
    if source is None:
        raise refuse(view, "the element type of its input is not known")
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(dtype) for dtype in (source, int(view.attr("to")))]

    def run(x: Any) -> Any:
        array = x.detach().cpu().numpy().astype(kinds[0])
        return as_tensor(array.reshape(-1).view(kinds[1]).reshape(array.shape), torch).to(x.device)

    return run


def _clamp(x: Any, low: Any, high: Any, torch: Any) -> Any:
    """x between two numbers, by the kernel whose gradient is cheaper where both are given."""
    if low is not None and high is not None and low <= high and x.is_floating_point():
        return torch.nn.functional.hardtanh(x, low, high)
    return torch.clamp(x, low, high)


def lower_clip(view: View, torch: Any) -> Lowered:
    """Clip, with the bounds in attributes (before opset 11) or in inputs; either may be missing."""
    if view.version < 11:
        low, high = view.attr("min"), view.attr("max")
        return lambda x: x if low is None and high is None else _clamp(x, low, high, torch)
    read_low, read_high = scalar(view, 1), scalar(view, 2)

    def run(*args: Any) -> Any:
        x, low, high = args[0], read_low(args), read_high(args)
        if low is None and high is None:
            return x
        if not any(isinstance(bound, torch.Tensor) for bound in (low, high)):
            return _clamp(x, low, high, torch)
        for bound, meet in ((low, torch.maximum), (high, torch.minimum)):
            if bound is not None:
                x = meet(x, torch.as_tensor(bound, dtype=x.dtype, device=x.device))
        return x

    return run


def lower_dropout(view: View, torch: Any) -> Lowered:
    """Dropout: the identity, unless the model itself asks for training mode."""
    read_training = scalar(view, 2, False)
    read_ratio = scalar(view, 1, 0.5)
    masked = len(view.node.outputs) > 1

    def run(*args: Any) -> Any:
        x = args[0]
        keep = torch.ones_like(x, dtype=torch.bool)
        if view.version >= 12 and bool(read_training(args)):
            ratio = float(read_ratio(args))
            keep = torch.rand_like(x, dtype=torch.float32) >= ratio
            x = x * keep / (1 - ratio) if ratio < 1 else x * 0
        return (x, keep) if masked else x

    return run


def lower_prelu(view: View, torch: Any) -> Lowered:
    """PRelu: a slope for each channel (before opset 7 always so), or one that is broadcast as numpy does."""
    old = view.version < 7

    def run(x: Any, slope: Any) -> Any:
        per_channel = x.dim() > 1 and slope.numel() == x.shape[1] and slope.dim() == x.dim() - 1
        if x.is_floating_point() and ((old and x.dim() > 1) or (per_channel and slope.shape[0] == x.shape[1])):
            return torch.nn.functional.prelu(x, slope.reshape(-1))
        return torch.where(x < 0, x * slope, x)

    return run


def lower_bit_shift(view: View, torch: Any) -> Lowered:
    """BitShift in either direction."""
    left = view.attr("direction") == "LEFT"
    found: Lowered = torch.bitwise_left_shift if left else torch.bitwise_right_shift
    return found


def lower_is_inf(view: View, torch: Any) -> Lowered:
    """IsInf, of one sign or both."""
    negative, positive = view.attr("detect_negative", 1), view.attr("detect_positive", 1)

    def run(x: Any) -> Any:
        found = torch.zeros_like(x, dtype=torch.bool)
        if negative:
            found = found | torch.isneginf(x)
        return found | torch.isposinf(x) if positive else found

    return run


def lower_gelu(view: View, torch: Any) -> Lowered:
    """Gelu, exact or with tanh."""
    approximate = view.attr("approximate", "none")
    return lambda x: torch.nn.functional.gelu(x, approximate=approximate)


def lower_bias_gelu(view: View, torch: Any) -> Lowered:
    """com.microsoft BiasGelu (exact) and FastGelu (with tanh, the bias optional)."""
    approximate = "tanh" if view.node.op_type == "FastGelu" else "none"
    gelu = torch.nn.functional.gelu
    return lambda x, bias=None: gelu(x if bias is None else x + bias, approximate=approximate)


def _shrink(torch: Any, x: Any, bias: float, lambd: float) -> Any:
    moved = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return moved.to(x.dtype)


lower_quick_gelu = _formula(lambda torch, x, alpha: x * torch.sigmoid(alpha * x), alpha=1.702)
"""com.microsoft QuickGelu."""


def _functional(name: str) -> Lowering:
    return lambda view, torch: getattr(torch.nn.functional, name)


LOWER: dict[str, Lowering] = {
    **{
        name: _plain(name.lower())
        for name in (
            "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor",
            "IsNaN", "Log", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
            "Tanh",
        )
    },
    **{name: _fold(name.lower()) for name in ("Add", "Sub", "Mul")},
    **{name: _fold(f"logical_{name.lower()}") for name in ("And", "Or", "Xor")},
    **{f"Bitwise{name}": _plain(f"bitwise_{name.lower()}") for name in ("And", "Not", "Or", "Xor")},
    "Equal": lower_equal, "Greater": _plain("gt"), "GreaterOrEqual": _plain("ge"), "Less": _plain("lt"),
    "LessOrEqual": _plain("le"), "Not": _plain("logical_not"), "Max": _fold("maximum"), "Min": _fold("minimum"),
    "Sum": _fold("add"), "Mean": lower_mean, "Div": lower_div, "Mod": lower_mod, "Pow": lower_pow,
    "BitCast": lower_bit_cast, "BitShift": lower_bit_shift, "Cast": lower_cast, "CastLike": lower_cast,
    "Clip": lower_clip,
    "Dropout": lower_dropout, "PRelu": lower_prelu, "IsInf": lower_is_inf, "Gelu": lower_gelu,
    "Identity": lambda view, torch: lambda x: x,
    "HardSwish": _functional("hardswish"), "Mish": _functional("mish"), "Softplus": _functional("softplus"),
    "Softsign": _functional("softsign"),
    "Where": lambda view, torch: lambda c, a, b: torch.where(c.to(torch.bool), a, b),
    "Elu": _formula(lambda torch, x, alpha: torch.nn.functional.elu(x, alpha), alpha=1.0),
    "Celu": _formula(lambda torch, x, alpha: torch.nn.functional.celu(x, alpha), alpha=1.0),
    "LeakyRelu": _formula(lambda torch, x, alpha: torch.nn.functional.leaky_relu(x, alpha), alpha=0.01),
    "Selu": _formula(
        lambda torch, x, alpha, gamma: gamma * torch.nn.functional.elu(x, alpha),
        alpha=1.67326319217681884765625,
        gamma=1.05070102214813232421875,
    ),
    "HardSigmoid": _formula(lambda torch, x, a, b: torch.clamp(x * a + b, 0, 1), alpha=0.2, beta=0.5),
    "Shrink": _formula(_shrink, bias=0.0, lambd=0.5),
    "Swish": _formula(lambda torch, x, alpha: x * torch.sigmoid(alpha * x), alpha=1.0),
    "ThresholdedRelu": _formula(lambda torch, x, a: torch.where(x > a, x, torch.zeros_like(x)), alpha=1.0),
}  # fmt: skip
