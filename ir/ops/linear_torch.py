"""The torch forms of matrix products."""

from __future__ import annotations

from typing import Any

from . import View
from .conv_torch import _activation
from .quant_torch import requantize, shifted
from .runtime import Lowered, Lowering, refuse


def lower_gemm(view: View, torch: Any) -> Lowered:
    """Gemm: alpha A' B' + beta C; the transposes happen at the call."""
    alpha, beta = float(view.attr("alpha", 1.0)), float(view.attr("beta", 1.0))
    flip_a, flip_b = bool(view.attr("transA", 0)), bool(view.attr("transB", 0))

    def run(a: Any, b: Any, c: Any = None) -> Any:
        a = a.transpose(0, 1) if flip_a else a
        if c is not None and c.dim() == 1 and alpha == beta == 1 and a.is_floating_point():
            return torch.nn.functional.linear(a, b if flip_b else b.transpose(0, 1), c)
        y = torch.matmul(a, b.transpose(0, 1) if flip_b else b)
        y = y if alpha == 1 else (y * alpha).to(a.dtype)
        return y if c is None else y + (c if beta == 1 else (c * beta).to(a.dtype))

    return run


def lower_fused_gemm(view: View, torch: Any) -> Lowered:
    """com.microsoft.FusedGemm: a Gemm with an activation behind it."""
    gemm, activate = lower_gemm(view, torch), _activation(view, torch)
    return lambda a, b, c=None: activate(gemm(a, b, c))


def lower_fused_matmul(view: View, torch: Any) -> Lowered:
    """com.microsoft.FusedMatMul: a scaled MatMul whose last two axes may be transposed."""
    if view.attr("transBatchA", 0) or view.attr("transBatchB", 0):
        raise refuse(view, "it transposes batch axes")
    alpha = float(view.attr("alpha", 1.0))
    flip_a, flip_b = bool(view.attr("transA", 0)), bool(view.attr("transB", 0))

    def run(a: Any, b: Any) -> Any:
        y = torch.matmul(a.transpose(-1, -2) if flip_a else a, b.transpose(-1, -2) if flip_b else b)
        return y if alpha == 1 else y * alpha

    return run


def lower_matmul_integer(view: View, torch: Any) -> Lowered:
    """MatMulInteger: a, b, a_zero (per row), b_zero (per column)."""

    def run(a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
        row = None if a_zero is None or a_zero.dim() == 0 or a_zero.numel() == 1 else a_zero.unsqueeze(-1)
        a = a.to(torch.float64)
        a = shifted(a, a_zero, 0) if row is None else a - row.to(a.dtype)
        y = torch.matmul(a, _minus_column(b.to(torch.float64), b_zero))
        return y.to(torch.int32) if not y.requires_grad else y

    return run


def _minus_column(b: Any, zero: Any) -> Any:
    if zero is None:
        return b
    if zero.dim() > 1:
        return b - zero.to(b.dtype)
    return shifted(b, zero, b.dim() - 1)


def lower_qlinear_matmul(view: View, torch: Any) -> Lowered:
    """QLinearMatMul: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    finish = requantize(view, torch, 7)

    def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> Any:
        rows = sa.unsqueeze(-1) if sa.dim() == 1 and sa.numel() > 1 else sa
        zero = za.unsqueeze(-1) if za.dim() == 1 and za.numel() > 1 else za
        a = a.to(torch.float64) - zero.to(torch.float64)
        y = torch.matmul(a, _minus_column(b.to(torch.float64), zb))
        return finish(y, rows * sb / sy, zy)

    return run


def lower_einsum(view: View, torch: Any) -> Lowered:
    """Einsum."""
    equation = str(view.attr("equation"))
    return lambda *args: torch.einsum(equation, *args)


LOWER: dict[str, Lowering] = {
    "Gemm": lower_gemm,
    "MatMul": lambda view, torch: torch.matmul,
    "MatMulInteger": lower_matmul_integer,
    "QLinearMatMul": lower_qlinear_matmul,
    "Einsum": lower_einsum,
}
