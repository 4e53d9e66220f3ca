"""Operators that work on each element alone, with numpy's broadcasting between operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from . import MICROSOFT, OpRule, Scope, View, Zeros, either, every, first, unknown


def relate_elementwise(s: Scope) -> None:
    """All tensor inputs are broadcast into every output of full rank; scalars say nothing."""
    broadcast_into(s, range(len(s.node.inputs)))


def broadcast_into(s: Scope, slots: Sequence[int]) -> None:
    """The axes of the given inputs, right-aligned, are the axes of output 0 (and of further outputs of its shape)."""
    out = s.out_axes()
    for axis in out:
        s.same(axis, axis)
    for number, name in enumerate(s.node.outputs[1:], start=1):
        if name and len(s.out_shape(number)) == len(out):
            for axis, other in zip(out, s.out_axes(number), strict=True):
                s.same(axis, other)
    for slot in slots:
        if s.has(slot):
            axes = s.in_axes(slot)
            for axis, other in zip(reversed(axes), reversed(out), strict=False):
                s.same(axis, other)


def relate_legacy_binary(s: Scope) -> None:
    """Add and its relatives before opset 7: `axis` says where the second operand is laid over the first."""
    if not s.attr("broadcast", 0):
        return relate_elementwise(s)
    broadcast_into(s, (0,))
    start = s.attr("axis")
    start = s.rank(0) - s.rank(1) if start is None else int(start) % s.rank(0)
    for place, axis in enumerate(s.in_axes(1)):
        s.same(axis, s.out(start + place))
    return None


def relate_first(s: Scope) -> None:
    """Only the first input carries channels; further inputs are scalars (bounds, ratios, seeds)."""
    broadcast_into(s, (0,))


def relate_legacy_prelu(s: Scope) -> None:
    """PRelu before opset 7: a slope of one axis belongs to the channels, wherever it would broadcast to today."""
    broadcast_into(s, (0,))
    if s.rank(1) == 1:
        return s.same(s.inp(1, 0), s.out(1 if s.rank(0) > 1 else 0))
    return broadcast_into(s, (1,))


def zeros_clip(view: View) -> Zeros:
    """Clip keeps zero when its bounds are on either side of it, which must be known."""
    bounds = []
    for name, slot, open_end in (("min", 1, -np.inf), ("max", 2, np.inf)):
        value = view.value(slot) if view.has(slot) else view.attr(name, open_end)
        bounds.append(np.nan if value is None else float(np.asarray(value).reshape(-1)[0]))
    return first(view) if bounds[0] <= 0 <= bounds[1] else ()


def zeros_where(view: View) -> Zeros:
    """Zero where both values to choose from are."""
    return ((1, 2),)


_UNARY: dict[str, tuple[int, ...]] = {
    "Abs": (1, 6, 13), "Acos": (7, 22), "Acosh": (9, 22), "Asin": (7, 22), "Asinh": (9, 22), "Atan": (7, 22),
    "Atanh": (9, 22), "BitwiseNot": (18,), "Cast": (1, 6, 9, 13, 19, 21, 23, 24, 25, 28), "Ceil": (1, 6, 13),
    "Celu": (12, 28), "Cos": (7, 22), "Cosh": (9, 22), "Elu": (1, 6, 22), "Erf": (9, 13), "Exp": (1, 6, 13),
    "Floor": (1, 6, 13), "Gelu": (20,), "HardSigmoid": (1, 6, 22), "HardSwish": (14, 22), "Identity":
    (1, 13, 14, 16, 19, 21, 23, 24, 25), "IsInf": (10, 20), "IsNaN": (9, 13, 20), "LeakyRelu": (1, 6, 16),
    "Log": (1, 6, 13), "Mish": (18, 22), "Neg": (1, 6, 13), "Not": (1,), "Reciprocal": (1, 6, 13),
    "Relu": (1, 6, 13, 14), "Round": (11, 22), "Selu": (1, 6, 22), "Shrink": (9,), "Sigmoid": (1, 6, 13),
    "Sign": (9, 13), "Sin": (7, 22), "Sinh": (9, 22), "Softplus": (1, 22), "Softsign": (1, 22),
    "Sqrt": (1, 6, 13), "Swish": (24,), "Tan": (7, 22), "Tanh": (1, 6, 13), "ThresholdedRelu": (10, 22),
}  # fmt: skip

_NARY: dict[str, tuple[int, ...]] = {
    "Add": (7, 13, 14), "And": (7,), "BitShift": (11, 28), "BitwiseAnd": (18,), "BitwiseOr": (18,), "BitwiseXor": (18,),
    "CastLike": (15, 19, 21, 23, 24, 25), "Div": (7, 13, 14), "Equal": (7, 11, 13, 19), "Greater": (7, 9, 13),
    "GreaterOrEqual": (12, 16), "Less": (7, 9, 13), "LessOrEqual": (12, 16), "Max": (1, 6, 8, 12, 13),
    "Mean": (1, 6, 8, 13), "Min": (1, 6, 8, 12, 13), "Mod": (10, 13, 28), "Mul": (7, 13, 14), "Or": (7,),
    "PRelu": (1, 6, 7, 9, 16), "Pow": (7, 12, 13, 15), "Sub": (7, 13, 14), "SwiGLU": (28,),
    "Sum": (1, 6, 8, 13), "Where": (9, 16),
    "Xor": (7,),
}  # fmt: skip

_FIRST: dict[str, tuple[int, ...]] = {
    "Clip": (1, 6, 11, 12, 13),
    "Dropout": (1, 6, 7, 10, 12, 13, 22),
}

_LEGACY = {
    "Add": (1, 6), "And": (1,), "Div": (1, 6), "Equal": (1,), "Greater": (1,), "Less": (1,), "Mul": (1, 6), "Or": (1,),
    "Pow": (1,), "Sub": (1, 6), "Xor": (1,),
}  # fmt: skip

_ZERO_AT_ZERO = frozenset({
    "Abs", "Asin", "Asinh", "Atan", "Cast", "CastLike", "Ceil", "Celu", "Div", "Dropout", "Elu", "Erf", "Floor", "Gelu",
    "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg", "PRelu", "QuickGelu", "Relu", "Round", "Selu", "Shrink",
    "Sign",
    "Sin", "Sinh", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip

_ZEROS: dict[str, Callable[[View], Zeros]] = {
    **dict.fromkeys(_ZERO_AT_ZERO, first),
    **dict.fromkeys(("Add", "BiasGelu", "FastGelu", "Max", "Mean", "Min", "Sub", "Sum"), every),
    "Clip": zeros_clip,
    "Mul": either,
    "SwiGLU": either,
    "Where": zeros_where,
}


def _rules(name: str) -> tuple[OpRule, ...]:
    """All rules of one operator of the tables above: of its versions with numpy's broadcasting, and of older ones."""
    zeros = _ZEROS.get(name, unknown)
    if name in _FIRST:
        return (OpRule(relate_first, _FIRST[name], zeros=zeros),)
    since = (_UNARY | _NARY)[name]
    if name == "PRelu":
        old = OpRule(relate_legacy_prelu, since[:2], zeros=zeros)
        return old, OpRule(relate_elementwise, since[2:], zeros=zeros)
    current = OpRule(relate_elementwise, since, zeros=zeros)
    return (current, OpRule(relate_legacy_binary, _LEGACY[name], zeros=zeros)) if name in _LEGACY else (current,)


RULES: dict[str, OpRule | tuple[OpRule, ...]] = {
    **{name: _rules(name) for name in (*_UNARY, *_NARY, *_FIRST)},
    **{
        name: OpRule(relate_elementwise, (1,), domain=MICROSOFT, zeros=_ZEROS[name])
        for name in ("BiasGelu", "FastGelu", "QuickGelu")
    },
    "Gelu": (*_rules("Gelu"), OpRule(relate_elementwise, (1,), domain=MICROSOFT, zeros=first)),
}
