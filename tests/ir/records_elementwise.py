"""Records of operators that work on each element alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from net import MICROSOFT, Net
from onnx import TensorProto
from record import Middle, Record, between_convs, between_products

BOOL, FLOAT, INT64, UINT8, UINT32 = (getattr(TensorProto, n) for n in ("BOOL", "FLOAT", "INT64", "UINT8", "UINT32"))

_PLAIN = [
    "Abs",
    "Asinh",
    "Atan",
    "Ceil",
    "Celu",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Cosh",
    "Softplus",
    "Softsign",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Dropout",
]


def _plain(net: Net, x: str, op: str) -> str:
    return net.op(op, x)


def _below_one(net: Net, x: str, op: str) -> str:
    """For functions of numbers between -1 and 1."""
    return net.op(op, net.op("Tanh", x))


def _positive(net: Net, x: str, op: str) -> str:
    """For functions of numbers above 0, or above 1."""
    y = net.op("Exp", net.op("Softplus", x))
    return net.op(op, y)


def _is(net: Net, x: str, op: str) -> str:
    """IsInf of 1 / max(x, 0), IsNaN of log(x)."""
    y = net.op("Reciprocal", net.op("Relu", x)) if op == "IsInf" else net.op("Log", x)
    return net.cast(net.op(op, y), FLOAT)


def _not(net: Net, x: str) -> str:
    return net.cast(net.op("Not", net.cast(net.op("Relu", x), BOOL)), FLOAT)


def _bitwise_not(net: Net, x: str) -> str:
    return net.cast(net.op("BitwiseNot", net.cast(net.op("Floor", x), INT64)), FLOAT)


def _cast(net: Net, x: str) -> str:
    return net.cast(net.cast(x, INT64), FLOAT)


def _clip(net: Net, x: str) -> str:
    return net.clip(x, -0.25, 0.5)


UNARY = [
    *(Record(op, between_convs(partial(_plain, op=op))) for op in _PLAIN),
    *(Record(op, between_convs(partial(_below_one, op=op))) for op in ("Acos", "Asin", "Atanh")),
    *(Record(op, between_convs(partial(_positive, op=op))) for op in ("Acosh", "Log", "Sqrt")),
    *(Record(op, between_convs(partial(_is, op=op))) for op in ("IsInf", "IsNaN")),
    Record("Not", between_convs(_not)),
    Record("BitwiseNot", between_convs(_bitwise_not)),
    Record("Cast", between_convs(_cast)),
    Record("Clip", between_convs(_clip)),
    *(
        Record(op, between_convs(partial(lambda net, x, op: net.op(op, x, domain=MICROSOFT), op=op)), domain=MICROSOFT)
        for op in ("Gelu", "QuickGelu")
    ),
    Record(
        "BiasGelu",
        between_products(lambda net, x: net.op("BiasGelu", x, net.weight(7), domain=MICROSOFT)),
        domain=MICROSOFT,
    ),
    Record(
        "FastGelu",
        between_products(lambda net, x: net.op("FastGelu", x, net.weight(7), domain=MICROSOFT)),
        domain=MICROSOFT,
    ),
]


def _second(net: Net, x: str, kind: str, change: Middle | None) -> str:
    """A second operand of one of the kinds of broadcasting."""
    if kind == "channel constant":
        y = net.positive(7, 1, 1)
    elif kind == "scalar":
        y = net.positive()
    elif kind == "row constant":
        y = net.positive(1, 11)
    else:
        y = net.op("Sigmoid", net.conv("x0", 3, 7))
    return change(net, y) if change else y


def _binary(net: Net, x: str, op: str, kind: str, change: Middle | None, back: bool, swap: bool = False) -> str:
    operands = [change(net, x) if change else x, _second(net, x, kind, change)]
    result = net.op(op, *(reversed(operands) if swap else operands))
    return net.cast(result, FLOAT) if back else result


def _to_int(net: Net, x: str) -> str:
    """Small whole numbers, of a type that all integer operators take."""
    return net.cast(net.op("Floor", net.op("Mul", net.op("Abs", x), net.const(3.0, np.float32))), INT64)


def _to_flags(net: Net, x: str) -> str:
    return net.op("Less", net.op("Floor", net.op("Abs", x)), net.const(0.7, np.float32))


def _to_unsigned(net: Net, x: str) -> str:
    return net.op("Cast", _to_int(net, x), to=UINT32)


def _bit_shift(net: Net, x: str) -> str:
    shifts = net.const(np.arange(7).reshape(7, 1, 1) % 3, np.uint32)
    return net.cast(net.op("BitShift", _to_unsigned(net, x), shifts, direction="LEFT"), FLOAT)


KINDS = ("channel constant", "scalar", "row constant", "activation")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")

_BinaryCase = tuple[str, Middle | None, bool]
_CASES: list[_BinaryCase] = [
    *((op, None, False) for op in _ARITHMETIC),
    *((op, None, True) for op in _COMPARISONS if op != "Equal"),
    ("Equal", _to_int, True),
    *((op, _to_flags, True) for op in ("And", "Or", "Xor")),
    *((op, _to_int, True) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    ("CastLike", None, False),
]
_SINCE_BROADCAST = {"Max": (8, 12, 13), "Min": (8, 12, 13), "Mean": (8, 13), "Sum": (8, 13)}
_NUMPY = {
    "Add": (7, 13, 14), "Sub": (7, 13, 14), "Mul": (7, 13, 14), "Div": (7, 13, 14), "And": (7,), "Or": (7,),
    "Xor": (7,), "Equal": (7, 11, 13, 19), "Greater": (7, 9, 13), "Less": (7, 9, 13),
}  # fmt: skip


def _binary_records() -> list[Record]:
    found = []
    for op, change, back in _CASES:
        since = {**_SINCE_BROADCAST, **_NUMPY}.get(op, ())
        for kind in KINDS if op not in ("And", "Or", "Xor") else ("channel constant", "activation"):
            middle = partial(_binary, op=op, kind=kind, change=change, back=back)
            found.append(Record(op, between_convs(middle), since=since, label=kind))
            if kind == "channel constant" and op in _ARITHMETIC:
                found.append(Record(op, between_convs(partial(middle, swap=True)), since=since, label="constant first"))
    return found


def _pow(net: Net, x: str) -> str:
    return net.op("Pow", net.op("Exp", x), net.positive(7, 1, 1))


def _mod(net: Net, x: str) -> str:
    return net.op("Mod", x, net.positive(7, 1, 1), fmod=1)


def _prelu(net: Net, x: str) -> str:
    return net.op("PRelu", x, net.positive(7) if net.opset < 7 else net.positive(7, 1, 1))


def _where(net: Net, x: str) -> str:
    flags = net.op("Less", x, net.const(0.1, np.float32))
    return net.op("Where", flags, net.positive(7, 1, 1), net.op("Neg", x))


def _legacy(net: Net, x: str, op: str, form: str) -> str:
    """Before opset 7: `broadcast` and `axis` say how the second operand is laid over the first."""
    flags = op in ("And", "Or", "Xor")
    whole = op in ("Equal",)
    to: Callable[[str], str] = lambda y: net.cast(net.op("Floor", y), BOOL if flags else INT64) if flags or whole else y  # noqa: E731
    if form == "equal":
        return _back(net, net.op(op, to(_exp(net, x, op)), to(net.op("Sigmoid", net.conv("x0", 3, 7)))), op)
    attrs: dict[str, Any] = {"broadcast": 1, "axis": 1} if form == "axis" else {"broadcast": 1}
    other = net.positive(7) if form == "axis" else net.positive(11)
    return _back(net, net.op(op, to(_exp(net, x, op)), to(other), **attrs), op)


def _exp(net: Net, x: str, op: str) -> str:
    return net.op("Exp", x) if op == "Pow" else x


def _back(net: Net, x: str, op: str) -> str:
    return x if op in ("Add", "Sub", "Mul", "Div", "Pow") else net.cast(x, FLOAT)


_LEGACY = {
    "Add": (1, 6), "Sub": (1, 6), "Mul": (1, 6), "Div": (1, 6), "Pow": (1,), "And": (1,), "Or": (1,), "Xor": (1,),
    "Equal": (1,), "Greater": (1,), "Less": (1,),
}  # fmt: skip


def _equal_shapes(net: Net, x: str, op: str) -> str:
    return net.op(op, x, net.op("Sigmoid", net.conv("x0", 3, 7)), net.conv("x0", 3, 7))


RECORDS = [
    *UNARY,
    *_binary_records(),
    *(Record(op, between_convs(partial(_equal_shapes, op=op)), label="three") for op in ("Max", "Min", "Mean", "Sum")),
    *(
        Record(op, between_convs(partial(_legacy, op=op, form=form)), since=since, label=form)
        for op, since in _LEGACY.items()
        for form in ("equal", "axis", "last")
    ),
    Record("Pow", between_convs(_pow), since=(7, 12, 13, 15)),
    Record("Mod", between_convs(_mod)),
    Record("PRelu", between_convs(_prelu)),
    Record("SwiGLU", between_convs(lambda net, x: net.op("SwiGLU", x, net.op("Neg", x)))),
    Record("Where", between_convs(_where)),
    Record("BitShift", between_convs(_bit_shift)),
]
