"""The torch forms of reductions and other operators that combine the positions of an axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import View
from .runtime import Lowered, Lowering, ints, scalar


def _mean(torch: Any, x: Any, axes: list[int], keep: bool) -> Any:
    if x.is_floating_point():
        return x.mean(axes, keep)
    total = x.sum(axes, keep)
    return torch.div(total, x.numel() // max(total.numel(), 1), rounding_mode="trunc").to(x.dtype)


def _prod(torch: Any, x: Any, axes: list[int], keep: bool) -> Any:
    dtype = x.dtype
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keep)
    return x.to(dtype)


def _extreme(name: str) -> Callable[[Any, Any, list[int], bool], Any]:
    def run(torch: Any, x: Any, axes: list[int], keep: bool) -> Any:
        if all(x.shape[axis] for axis in axes):
            return getattr(torch, name)(x, axes, keep)
        kept = [1 if a in axes else s for a, s in enumerate(x.shape) if keep or a not in axes]
        low, high = (torch.finfo(x.dtype).min, torch.finfo(x.dtype).max) if x.is_floating_point() else (0, 1)
        if x.is_floating_point():
            low, high = float("-inf"), float("inf")
        elif x.dtype != torch.bool:
            low, high = torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max
        return torch.full(kept, low if name == "amax" else high, dtype=x.dtype, device=x.device)

    return run


def _sum(torch: Any, x: Any, axes: list[int], keep: bool) -> Any:
    return x.sum(axes, keep).to(x.dtype)


def _root(torch: Any, x: Any, axes: list[int], keep: bool) -> Any:
    if not x.is_floating_point():
        return x.to(torch.float64).square().sum(axes, keep).sqrt().to(x.dtype)
    return x.square().sum(axes, keep).sqrt()


_REDUCTIONS: dict[str, Callable[[Any, Any, list[int], bool], Any]] = {
    "ReduceL1": lambda torch, x, axes, keep: _sum(torch, x.abs(), axes, keep),
    "ReduceL2": _root,
    "ReduceLogSum": lambda torch, x, axes, keep: torch.log(_sum(torch, x, axes, keep)),
    "ReduceLogSumExp": lambda torch, x, axes, keep: (
        torch.logsumexp(x, axes, keep) if x.is_floating_point() else torch.logsumexp(x.double(), axes, keep).to(x.dtype)
    ),
    "ReduceMax": _extreme("amax"),
    "ReduceMin": _extreme("amin"),
    "ReduceMean": _mean,
    "ReduceProd": _prod,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda torch, x, axes, keep: _sum(torch, x.square(), axes, keep),
}


def lower_reduce(view: View, torch: Any) -> Lowered:
    """Reductions: over the given axes, over all when none are given, or over none when the model says so."""
    function, keep = _REDUCTIONS[view.node.op_type], bool(view.attr("keepdims", 1))
    read, noop = ints(view, "axes", 1, ()), bool(view.attr("noop_with_empty_axes", 0))

    def run(*args: Any) -> Any:
        x, axes = args[0], read(args)
        if not axes and noop:
            return function(torch, x.unsqueeze(0), [0], False)
        places = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
        return function(torch, x, places, keep) if x.dim() else function(torch, x.reshape(1), [0], False)

    return run


def lower_arg(view: View, torch: Any) -> Lowered:
    """ArgMax and ArgMin: the first of equals, or the last."""
    axis, keep = int(view.attr("axis", 0)), bool(view.attr("keepdims", 1))
    last, largest = bool(view.attr("select_last_index", 0)), view.node.op_type == "ArgMax"

    def run(x: Any) -> Any:
        extreme = x.amax(axis, True) if largest else x.amin(axis, True)
        size = x.shape[axis]
        shape = [1] * x.dim()
        shape[axis] = size
        places = torch.arange(size, device=x.device).reshape(shape)
        if last:
            found = torch.where(x == extreme, places, -1).amax(axis, keep)
        else:
            found = torch.where(x == extreme, places, size).amin(axis, keep)
        return found

    return run


def lower_softmax(view: View, torch: Any) -> Lowered:
    """Softmax and LogSoftmax: along one axis, before opset 13 over all axes from that one on."""
    old = view.version < 13
    function = torch.log_softmax if view.node.op_type == "LogSoftmax" else torch.softmax

    def run(x: Any) -> Any:
        axis = view.axis(1 if old else -1, x.dim())
        if not old or axis == x.dim() - 1:
            return function(x, axis)
        return function(x.flatten(axis), axis).reshape(x.shape)

    return run


def lower_hardmax(view: View, torch: Any) -> Lowered:
    """Hardmax: 1 at the first largest position, 0 elsewhere."""
    old = view.version < 13

    def run(x: Any) -> Any:
        axis = view.axis(1 if old else -1, x.dim())
        flat = x.flatten(axis) if old else x
        place = torch.argmax(flat, axis, keepdim=True)
        return torch.zeros_like(flat).scatter(axis, place, 1).reshape(x.shape)

    return run


def lower_cumulative(view: View, torch: Any) -> Lowered:
    """CumSum and CumProd: from either end, the own position counted or not."""
    read = ints(view, "", 1)
    exclusive, reverse = bool(view.attr("exclusive", 0)), bool(view.attr("reverse", 0))
    function, neutral = (torch.cumprod, 1) if view.node.op_type == "CumProd" else (torch.cumsum, 0)

    def run(*args: Any) -> Any:
        x, (axis,) = args[0], read(args) or (0,)
        x = x.flip(axis) if reverse else x
        if exclusive:
            first = torch.full_like(x.narrow(axis, 0, 1), neutral)
            x = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        y = function(x, axis).to(x.dtype)
        return y.flip(axis) if reverse else y

    return run


def lower_top_k(view: View, torch: Any) -> Lowered:
    """TopK: values and their places; equal values in the order in which they stand."""
    axis = int(view.attr("axis", -1))
    largest = bool(view.attr("largest", 1))
    fixed = view.attr("k")
    read = scalar(view, 1) if fixed is None else lambda args: fixed

    def run(*args: Any) -> Any:
        x, k = args[0], int(read(args))
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, k), places.narrow(axis, 0, k)

    return run


LOWER: dict[str, Lowering] = {
    **dict.fromkeys(_REDUCTIONS, lower_reduce),
    "ArgMax": lower_arg,
    "ArgMin": lower_arg,
    "Softmax": lower_softmax,
    "LogSoftmax": lower_softmax,
    "Hardmax": lower_hardmax,
    "CumSum": lower_cumulative,
    "CumProd": lower_cumulative,
    "TopK": lower_top_k,
}
