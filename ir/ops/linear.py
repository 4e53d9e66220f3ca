"""Matrix products: Gemm, MatMul and its relatives, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ShapeError
from ..graph import Shape
from . import MICROSOFT, OpRule, Scope, View, either
from .elementwise import broadcast_into


def relate_gemm(s: Scope) -> None:
    """Y = A' B' + C with either factor transposed; C is broadcast to Y."""
    a = "K M" if s.attr("transA", 0) else "M K"
    b = "O K" if s.attr("transB", 0) else "K O"
    s.signature(f"{a}, {b} -> M O")
    if s.has(2):
        broadcast_into(s, (2,))


def relate_matmul(s: Scope) -> None:
    """Y[..., t, o] = sum over k of A[..., t, k] * B[..., k, o]; one-dimensional operands as numpy has them."""
    relate_product(s, 0, 1)


def relate_product(s: Scope, left: int, right: int, columns: tuple[int, ...] = ()) -> None:
    """The relations of a matrix product of two inputs into output 0.

    The inputs `columns` may hold a number for each column of the right factor; further inputs are scalars.
    """
    rank_a, rank_b = s.rank(left), s.rank(right)
    if 0 in (rank_a, rank_b):
        raise ShapeError("a matrix product of a scalar")
    a = "K" if rank_a == 1 else "... T K"
    b = "K" if rank_b == 1 else "... K O" if rank_b > 2 else "K O"
    leading = "... " if max(rank_a, rank_b) > 2 or (rank_a == 2 and len(s.out_shape()) > 2) else ""
    y = leading + " ".join(name for name, given in (("T", rank_a > 1), ("O", rank_b > 1)) if given)
    if rank_a == 2:
        a = "T K"
    operands = ["_"] * len(s.node.inputs)
    operands[left], operands[right] = a, b
    for slot in columns:
        if s.has(slot) and s.rank(slot) == 1 and s.shape(slot)[0] > 1:
            operands[slot] = "O"
    s.signature(f"{', '.join(operands)} -> {y}")


def macs_product(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Output elements times the length of the contracted axis."""
    transposed = bool(view.attr("transA", 0)) and len(ins[0]) > 1
    return int(np.prod(outs[0], dtype=np.int64)) * (ins[0][-2] if transposed else ins[0][-1])


def relate_fused_matmul(s: Scope) -> None:
    """com.microsoft.FusedMatMul: a MatMul whose last two axes may be transposed."""
    if s.attr("transBatchA", 0) or s.attr("transBatchB", 0):
        raise ShapeError("the axes of the batch are transposed with the matrix")
    a = "... K T" if s.attr("transA", 0) else "... T K"
    b = "... O K" if s.attr("transB", 0) else "... K O"
    s.signature(f"{a}, {b} -> ... T O")


def relate_qlinear_matmul(s: Scope) -> None:
    """QLinearMatMul: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero; per-column scales of b follow."""
    relate_product(s, 0, 3, columns=(4, 5))


def relate_matmul_integer(s: Scope) -> None:
    """MatMulInteger: a, b, a_zero, b_zero; per-column zero points of b follow."""
    relate_product(s, 0, 1, columns=(3,))


def relate_qgemm(s: Scope) -> None:
    """com.microsoft.QGemm: A, a_scale, a_zero, B, b_scale, b_zero, C, y_scale, y_zero."""
    a = "K M" if s.attr("transA", 0) else "M K"
    b = "O K" if s.attr("transB", 0) else "K O"
    scale, zero = ("O" if s.has(slot) and s.rank(slot) == 1 and s.shape(slot)[0] > 1 else "_" for slot in (4, 5))
    bias = "_" if not s.has(6) or s.shape(6)[-1] == 1 else "O" if s.rank(6) == 1 else "M O"
    s.signature(f"{a}, _, _, {b}, {scale}, {zero}, {bias}, _, _ -> M O")


def relate_scaled_product(s: Scope) -> None:
    """com.microsoft.MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero, b_zero, bias."""
    relate_product(s, 0, 1, columns=(3, 5, 6))


def relate_dynamic_product(s: Scope) -> None:
    """com.microsoft.DynamicQuantizeMatMul: A, B, b_scale, b_zero, bias; the range of A is that of all its channels."""
    relate_product(s, 0, 1, columns=(2, 3, 4))
    s.freeze(s.inp(0, -1), "DynamicQuantizeMatMul takes its range from all channels of this axis")


def relate_einsum(s: Scope) -> None:
    """Einsum: the equation is a signature already."""
    equation = str(s.attr("equation")).replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if not arrow:
        letters = sorted(set("".join(operands)) - {",", "."})
        right = ("..." if "..." in left else "") + "".join(c for c in letters if left.count(c) == 1)
    if any(len(set(term.replace("...", ""))) < len(term.replace("...", "")) for term in (*operands, right)):
        raise ShapeError(f"equation '{equation}' takes a diagonal")
    terms = [_term(term, s.rank(slot)) for slot, term in enumerate(operands)]
    s.signature(f"{', '.join(terms)} -> {_term(right, len(s.out_shape()))}")


def _term(term: str, rank: int) -> str:
    """One operand of an equation as signature tokens; the axes of its ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    count = rank - len(before) - len(after) if dots else 0
    middle = [f"E{number}" for number in reversed(range(count))]
    return " ".join([*(f"L{ord(c)}" for c in before), *middle, *(f"L{ord(c)}" for c in after)]) or "_"


def macs_einsum(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Output elements times the contracted axes."""
    left, _, right = str(view.attr("equation")).replace(" ", "").partition("->")
    sizes = {
        letter: size
        for term, shape in zip(left.split(","), ins, strict=True)
        if "..." not in term
        for letter, size in zip(term, shape, strict=True)
    }
    contracted = [size for letter, size in sizes.items() if letter not in right]
    return int(np.prod(outs[0], dtype=np.int64)) * int(np.prod(contracted, dtype=np.int64))


RULES = {
    "Gemm": OpRule(relate_gemm, (1, 6, 7, 9, 11, 13), macs=macs_product, zeros=lambda view: ((1, 2), (0, 2))),
    "MatMul": OpRule(relate_matmul, (1, 9, 13), macs=macs_product, zeros=either),
    "MatMulInteger": OpRule(
        relate_matmul_integer,
        (10,),
        macs=macs_product,
        zeros=either,
        zero_points=lambda view: {0: (2, view.rank(0) - 2), 1: (3, view.rank(1) - 1)},
    ),
    "QLinearMatMul": OpRule(
        relate_qlinear_matmul, (10, 21), macs=macs_product, zero_points=lambda view: {3: (5, view.rank(3) - 1)}
    ),
    "Einsum": OpRule(relate_einsum, (12, 28), macs=macs_einsum, zeros=either),
    "FusedMatMul": OpRule(relate_fused_matmul, (1,), macs=macs_product, domain=MICROSOFT, zeros=either),
    "TransposeMatMul": OpRule(relate_fused_matmul, (1,), macs=macs_product, domain=MICROSOFT, zeros=either),
    "DynamicQuantizeMatMul": OpRule(
        relate_dynamic_product,
        (1,),
        macs=macs_product,
        domain=MICROSOFT,
        zero_points=lambda view: {1: (3, view.rank(1) - 1)},
    ),
    "MatMulIntegerToFloat": OpRule(
        relate_scaled_product,
        (1,),
        macs=macs_product,
        domain=MICROSOFT,
        zero_points=lambda view: {1: (5, view.rank(1) - 1)},
    ),
    "QGemm": OpRule(
        relate_qgemm,
        (1,),
        macs=macs_product,
        domain=MICROSOFT,
        zero_points=lambda view: {3: (5, 0 if view.attr("transB", 0) else 1)},
    ),
    "FusedGemm": OpRule(relate_gemm, (1,), macs=macs_product, domain=MICROSOFT),
}
