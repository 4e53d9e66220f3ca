"""The torch forms of normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import View
from .runtime import Lowered, Lowering


def lower_batch_norm(view: View, torch: Any) -> Lowered:
    """BatchNormalization with given statistics; in training mode with those of the batch, and the new running ones."""
    epsilon, momentum = float(view.attr("epsilon", 1e-5)), float(view.attr("momentum", 0.9))
    if view.attr("training_mode", 0):
        return _batch_norm_training(torch, epsilon, momentum)
    spatial = bool(view.attr("spatial", 1)) or view.version >= 9

    def run(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        if spatial and x.dim() > 1:
            return torch.nn.functional.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)
        return (x - mean) * torch.rsqrt(var + epsilon) * scale + bias

    return run


def _batch_norm_training(torch: Any, epsilon: float, momentum: float) -> Lowered:
    def run(x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        found, spread = x.mean(axes), x.var(axes, correction=0)
        y = torch.nn.functional.batch_norm(x, found, spread, scale, bias, False, 0.0, epsilon)
        return y, mean * momentum + found * (1 - momentum), var * momentum + spread * (1 - momentum)

    return run


def lower_instance_norm(view: View, torch: Any) -> Lowered:
    """InstanceNormalization: a group normalisation with one channel to a group."""
    epsilon = float(view.attr("epsilon", 1e-5))
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def lower_group_norm(view: View, torch: Any) -> Lowered:
    """GroupNormalization; before opset 21 scale and bias are per group."""
    groups, epsilon = int(view.attr("num_groups")), float(view.attr("epsilon", 1e-5))

    def run(x: Any, scale: Any, bias: Any) -> Any:
        times = x.shape[1] // scale.shape[0]
        if times > 1:
            scale, bias = scale.repeat_interleave(times), bias.repeat_interleave(times)
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return run


def lower_layer_norm(view: View, torch: Any) -> Lowered:
    """LayerNormalization over all axes from `axis` on; further outputs are the mean and 1 / standard deviation."""
    epsilon = float(view.attr("epsilon", 1e-5))
    several = len(view.node.outputs) > 1

    def run(x: Any, scale: Any, bias: Any = None) -> Any:
        shape = x.shape[view.axis(-1, x.dim()) :]
        if not several and scale.shape == shape and (bias is None or bias.shape == shape):
            return torch.nn.functional.layer_norm(x, shape, scale, bias, epsilon)
        y, mean, inverse = _standardized(x, len(shape), epsilon, torch)
        y = y * scale if bias is None else y * scale + bias
        return (y, mean, inverse) if several else y

    return run


def _standardized(x: Any, count: int, epsilon: float, torch: Any) -> tuple[Any, Any, Any]:
    axes = list(range(-count, 0))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def lower_rms_norm(view: View, torch: Any) -> Lowered:
    """RMSNormalization and SimplifiedLayerNormalization: x / sqrt(mean(x^2) + epsilon) * scale."""
    epsilon = float(view.attr("epsilon", 1e-5))
    several = len(view.node.outputs) > 1

    def run(x: Any, scale: Any) -> Any:
        axes = list(range(view.axis(-1, x.dim()) - x.dim(), 0))
        inverse = torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
        return (x * inverse * scale, inverse) if several else x * inverse * scale

    return run


def lower_skip_layer_norm(view: View, torch: Any) -> Lowered:
    """com.microsoft.SkipLayerNormalization: x, skip, gamma, beta, bias -> y, mean, 1 / deviation, the sum."""
    epsilon = float(view.attr("epsilon", 1e-5))

    def run(x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        y, mean, inverse = _standardized(total, 1, epsilon, torch)
        y = y * gamma if beta is None else y * gamma + beta
        return _first(view, (y, mean, inverse, total))

    return run


def lower_skip_simplified(view: View, torch: Any) -> Lowered:
    """com.microsoft.SkipSimplifiedLayerNormalization: x, skip, gamma, bias."""
    epsilon = float(view.attr("epsilon", 1e-5))

    def run(x: Any, skip: Any, gamma: Any, bias: Any = None) -> Any:
        total = x + skip if bias is None else x + skip + bias
        inverse = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
        return _first(view, (total * inverse * gamma, None, inverse, total))

    return run


def _first(view: View, outputs: Sequence[Any]) -> Any:
    return outputs[0] if len(view.node.outputs) == 1 else tuple(outputs)


def lower_lp_norm(view: View, torch: Any) -> Lowered:
    """LpNormalization: x over its norm along an axis; where that is 0, 0."""
    p = int(view.attr("p", 2))

    def run(x: Any) -> Any:
        norm = torch.linalg.vector_norm(x, p, dim=view.axis(-1, x.dim()), keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return run


def lower_lrn(view: View, torch: Any) -> Lowered:
    """LRN: x / (bias + alpha / size * the sum of squares of `size` neighbouring channels) ^ beta."""
    size, alpha = int(view.attr("size")), float(view.attr("alpha", 1e-4))
    beta, bias = float(view.attr("beta", 0.75)), float(view.attr("bias", 1.0))
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2

    def run(x: Any) -> Any:
        squares = torch.nn.functional.pad(x.square().flatten(2), (0, 0, before, after))  # (n, c + size - 1, pixels)
        total = squares.unfold(1, size, 1).sum(-1).reshape(x.shape)
        return x / (bias + alpha / size * total) ** beta

    return run


def lower_mean_variance(view: View, torch: Any) -> Lowered:
    """MeanVarianceNormalization: (x - mean) / (deviation + 1e-9)."""
    axes = [int(axis) for axis in view.attr("axes", (0, 2, 3))]

    def run(x: Any) -> Any:
        mean = x.mean(axes, keepdim=True)
        deviation = (x - mean).square().mean(axes, keepdim=True).sqrt()
        return (x - mean) / (deviation + 1e-9)

    return run


LOWER: dict[str, Lowering] = {
    "BatchNormalization": lower_batch_norm,
    "InstanceNormalization": lower_instance_norm,
    "GroupNormalization": lower_group_norm,
    "LayerNormalization": lower_layer_norm,
    "RMSNormalization": lower_rms_norm,
    "SimplifiedLayerNormalization": lower_rms_norm,
    "LpNormalization": lower_lp_norm,
    "LRN": lower_lrn,
    "MeanVarianceNormalization": lower_mean_variance,
}
