"""The torch forms of ONNX Runtime's own operators (domain com.microsoft): quantized layers and attention in one piece.

A quantized layer is its float layer between a dequantization and a rounding to the output's grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import View
from .conv_torch import lower_fused_conv
from .elementwise_torch import lower_bias_gelu, lower_gelu, lower_quick_gelu
from .linear_torch import lower_fused_gemm, lower_fused_matmul, lower_gemm
from .norm_torch import lower_skip_layer_norm, lower_skip_simplified
from .pool_torch import lower_average_pool, lower_grid_sample
from .quant_torch import lower_dequantize, lower_dynamic_quantize, lower_quantize, requantize
from .runtime import Lowered, Lowering, refuse


def _real(x: Any, scale: Any, zero: Any, torch: Any) -> Any:
    """(x - zero) * scale; per-channel parameters belong to the last axis."""
    y = x.to(torch.float32)
    return (y if zero is None else y - zero.to(torch.float32)) * scale


def _binary(name: str) -> Lowering:
    def lower(view: View, torch: Any) -> Lowered:
        operate, finish = getattr(torch, name), requantize(view, torch, 7)

        def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> Any:
            return finish(operate(_real(a, sa, za, torch), _real(b, sb, zb, torch)), 1 / sy, zy)

        return run

    return lower


def _unary(inner: Callable[[View, Any], Lowered]) -> Lowering:
    def lower(view: View, torch: Any) -> Lowered:
        operate, finish = inner(view, torch), requantize(view, torch, 4)
        last = bool(view.attr("channels_last", 0))

        def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any) -> Any:
            x = _real(x, sx, zx, torch)
            y = operate(x.movedim(-1, 1) if last else x)
            return finish(y.movedim(1, -1) if last else y, 1 / sy, zy)

        return run

    return lower


def _leaky_relu(view: View, torch: Any) -> Lowered:
    slope = float(view.attr("alpha", 0.01))
    return lambda x: torch.nn.functional.leaky_relu(x, slope)


def lower_qlinear_concat(view: View, torch: Any) -> Lowered:
    """QLinearConcat: y_scale, y_zero, then (x, scale, zero) for each part."""
    finish, axis = requantize(view, torch, 1), int(view.attr("axis", 1))

    def run(sy: Any, zy: Any, *parts: Any) -> Any:
        values = [_real(parts[k], parts[k + 1], parts[k + 2], torch) for k in range(0, len(parts), 3)]
        return finish(torch.cat(values, axis), 1 / sy, zy)

    return run


def lower_qlinear_softmax(view: View, torch: Any) -> Lowered:
    """QLinearSoftmax: x, scale, zero, y_scale, y_zero; over all axes from `axis` on where `opset` is below 13."""
    finish, old = requantize(view, torch, 4), int(view.attr("opset", 13)) < 13

    def run(x: Any, sx: Any, zx: Any, sy: Any, zy: Any) -> Any:
        x, axis = _real(x, sx, zx, torch), view.axis(1 if old else -1, x.dim())
        y = torch.softmax(x.flatten(axis), axis).reshape(x.shape) if old else torch.softmax(x, axis)
        return finish(y, 1 / sy, zy)

    return run


def lower_qlinear_where(view: View, torch: Any) -> Lowered:
    """QLinearWhere: condition, then x and y with scale and zero point each, then the output's."""
    finish = requantize(view, torch, 8)

    def run(c: Any, x: Any, sx: Any, zx: Any, y: Any, sy: Any, zy: Any, sz: Any, zz: Any) -> Any:
        return finish(torch.where(c, _real(x, sx, zx, torch), _real(y, sy, zy, torch)), 1 / sz, zz)

    return run


def lower_qgemm(view: View, torch: Any) -> Lowered:
    """QGemm: a, scale, zero, b, scale, zero, c (in units of the product), y_scale, y_zero or a float result."""
    gemm = lower_gemm(view, torch)
    finish = requantize(view, torch, 8) if view.has(8) else None
    flip = bool(view.attr("transB", 0))

    def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, c: Any = None, sy: Any = None, zy: Any = None) -> Any:
        row = sb.reshape(-1, 1) if flip and sb.numel() > 1 else sb
        zero = zb.reshape(-1, 1) if flip and zb is not None and zb.numel() > 1 else zb
        bias = None if c is None else c.to(torch.float32) * sa * sb * float(view.attr("alpha", 1.0))
        y = gemm(_real(a, sa, za, torch), _real(b, row, zero, torch), bias)
        return y if finish is None else finish(y, 1 / sy, zy)

    return run


def lower_matmul_integer_to_float(view: View, torch: Any) -> Lowered:
    """MatMulIntegerToFloat: a, b, a_scale, b_scale, a_zero, b_zero, bias."""

    def run(a: Any, b: Any, sa: Any, sb: Any, za: Any = None, zb: Any = None, bias: Any = None) -> Any:
        y = torch.matmul(_real(a, sa, za, torch), _real(b, sb, zb, torch))
        return y if bias is None else y + bias

    return run


def lower_dynamic_quantize_matmul(view: View, torch: Any) -> Lowered:
    """DynamicQuantizeMatMul: a (float, rounded to 8 bits over its own range), b, b_scale, b_zero, bias."""
    quantize = lower_dynamic_quantize(view, torch)

    def run(a: Any, b: Any, sb: Any, zb: Any = None, bias: Any = None) -> Any:
        whole, scale, zero = quantize(a)
        y = torch.matmul(_real(whole, scale, zero, torch), _real(b, sb, zb, torch))
        return y if bias is None else y + bias

    return run


def _heads(x: Any, count: int) -> Any:
    """(batch, length, count * size) as (batch, count, length, size)."""
    return x if x.dim() == 4 else x.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend(q: Any, k: Any, v: Any, bias: Any, scale: float | None, causal: bool, torch: Any) -> Any:
    """softmax(q k' * scale + bias) v, heads side by side: (batch, length, count * size)."""
    scores = torch.matmul(q, k.transpose(-1, -2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    scores = scores if bias is None else scores + bias
    if causal:
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(torch.triu(ahead, 1 + scores.shape[-1] - scores.shape[-2]), float("-inf"))
    return torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).flatten(2)


def _scale(view: View) -> float | None:
    found = view.attr("scale")
    return None if not found else float(found)


def lower_multi_head_attention(view: View, torch: Any) -> Lowered:
    """MultiHeadAttention: query, key, value, bias, mask (refused), relative position bias; no cache."""
    if len(view.node.outputs) > 1 or any(view.has(slot) for slot in (4, 6, 7)) or not view.has(2):
        raise refuse(view, "a key mask, a cache, or packed inputs")
    count, causal = int(view.attr("num_heads")), bool(view.attr("unidirectional", 0))

    def run(q: Any, k: Any, v: Any, bias: Any = None, mask: Any = None, position: Any = None) -> Any:
        if bias is not None:
            widths = [q.shape[-1], q.shape[-1], v.shape[-1]]
            bq, bk, bv = bias.split(widths)
            q, k, v = q + bq, k + bk, v + bv
        return _attend(_heads(q, count), _heads(k, count), _heads(v, count), position, _scale(view), causal, torch)

    return run


def lower_attention(view: View, torch: Any) -> Lowered:
    """Attention: x, packed weights (inputs, q + k + v), bias; relative position bias; no mask, no cache."""
    if len(view.node.outputs) > 1 or any(view.has(slot) for slot in (3, 4, 6)) or view.attr("do_rotary", 0):
        raise refuse(view, "a mask, a cache, or rotary positions")
    count, causal = int(view.attr("num_heads")), bool(view.attr("unidirectional", 0))
    sizes = view.attr("qkv_hidden_sizes")

    def run(x: Any, w: Any, b: Any = None, mask: Any = None, past: Any = None, position: Any = None) -> Any:
        y = torch.matmul(x, w)
        y = y if b is None else y + b
        widths = [int(size) for size in sizes] if sizes else [w.shape[1] // 3] * 3
        q, k, v = (_heads(part, count) for part in y.split(widths, -1))
        return _attend(q, k, v, position, _scale(view), causal, torch)

    return run


MICROSOFT_LOWER: dict[str, Lowering] = {
    "Attention": lower_attention,
    "BiasGelu": lower_bias_gelu,
    "DequantizeLinear": lower_dequantize,
    "DynamicQuantizeMatMul": lower_dynamic_quantize_matmul,
    "FastGelu": lower_bias_gelu,
    "FusedConv": lower_fused_conv,
    "FusedGemm": lower_fused_gemm,
    "FusedMatMul": lower_fused_matmul,
    "Gelu": lower_gelu,
    "GridSample": lower_grid_sample,
    "MatMulIntegerToFloat": lower_matmul_integer_to_float,
    "MultiHeadAttention": lower_multi_head_attention,
    "QGemm": lower_qgemm,
    "QLinearAdd": _binary("add"),
    "QLinearAveragePool": _unary(lower_average_pool),
    "QLinearConcat": lower_qlinear_concat,
    "QLinearGlobalAveragePool": _unary(lambda view, torch: lambda x: x.mean(list(range(2, x.dim())), keepdim=True)),
    "QLinearLeakyRelu": _unary(_leaky_relu),
    "QLinearMul": _binary("mul"),
    "QLinearSigmoid": _unary(lambda view, torch: torch.sigmoid),
    "QLinearSoftmax": lower_qlinear_softmax,
    "QLinearWhere": lower_qlinear_where,
    "QuantizeLinear": lower_quantize,
    "QuickGelu": lower_quick_gelu,
    "SkipLayerNormalization": lower_skip_layer_norm,
    "SkipSimplifiedLayerNormalization": lower_skip_simplified,
    "TransposeMatMul": lower_fused_matmul,
}
