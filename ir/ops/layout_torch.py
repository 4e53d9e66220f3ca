"""The torch forms of operators that lay the same elements out anew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from . import View
from .runtime import Lowered, Lowering, ints


def lower_reshape(view: View, torch: Any) -> Lowered:
    """Reshape: 0 copies an axis (unless allowzero), -1 is the rest."""
    read, zeros = ints(view, "shape", 1), bool(view.attr("allowzero", 0))

    def run(*args: Any) -> Any:
        x, shape = args[0], read(args) or ()
        if not zeros and 0 in shape:
            shape = tuple(x.shape[place] if size == 0 else size for place, size in enumerate(shape))
        return x.reshape(shape)

    return run


def lower_flatten(view: View, torch: Any) -> Lowered:
    """Flatten to two axes."""
    axis = int(view.attr("axis", 1))

    def run(x: Any) -> Any:
        return x.reshape(math.prod(x.shape[: axis if axis >= 0 else axis + x.dim()]), -1) if x.numel() else _empty(x)

    def _empty(x: Any) -> Any:
        place = axis if axis >= 0 else axis + x.dim()
        return x.reshape(math.prod(x.shape[:place]), math.prod(x.shape[place:]))

    return run


def lower_transpose(view: View, torch: Any) -> Lowered:
    """Transpose."""
    perm = view.attr("perm")
    return lambda x: x.permute(tuple(perm) if perm is not None else tuple(reversed(range(x.dim()))))


def lower_squeeze(view: View, torch: Any) -> Lowered:
    """Squeeze of the given axes, or of all that have length 1."""
    read = ints(view, "axes", 1, ())

    def run(*args: Any) -> Any:
        axes = read(args)
        return args[0].squeeze(tuple(axes)) if axes else args[0].squeeze()

    return run


def lower_unsqueeze(view: View, torch: Any) -> Lowered:
    """Unsqueeze: the axes count in the result."""
    read = ints(view, "axes", 1, ())

    def run(*args: Any) -> Any:
        x, axes = args[0], read(args) or ()
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def lower_expand(view: View, torch: Any) -> Lowered:
    """Expand: numpy's broadcasting of the input with a shape."""
    read = ints(view, "", 1)

    def run(*args: Any) -> Any:
        x, shape = args[0], read(args) or ()
        return x.expand(_broadcast(x.shape, shape))

    return run


def _broadcast(a: Sequence[int], b: Sequence[int]) -> list[int]:
    rank = max(len(a), len(b))
    a, b = [1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b)
    return [y if x == 1 else x for x, y in zip(a, b, strict=True)]


def lower_tile(view: View, torch: Any) -> Lowered:
    """Tile."""
    read = ints(view, "", 1)
    return lambda *args: args[0].repeat(read(args))


def lower_depth_to_space(view: View, torch: Any) -> Lowered:
    """DepthToSpace: blocks of channels become pixels; CRD keeps a channel's block together, DCR spreads it."""
    b, crd = int(view.attr("blocksize")), view.attr("mode", "DCR") == "CRD"

    def run(x: Any) -> Any:
        if crd and x.is_floating_point():
            return torch.nn.functional.pixel_shuffle(x, b)
        n, c, h, w = x.shape
        if crd:
            y = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        else:
            y = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // (b * b), h * b, w * b)

    return run


def lower_space_to_depth(view: View, torch: Any) -> Lowered:
    """SpaceToDepth: the block's places come before the channels, or behind them in mode CRD."""
    b, crd = int(view.attr("blocksize")), view.attr("mode", "DCR") == "CRD"

    def run(x: Any) -> Any:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // b, b, w // b, b).permute(*((0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)))
        return y.reshape(n, c * b * b, h // b, w // b)

    return run


LOWER: dict[str, Lowering] = {
    "Reshape": lower_reshape,
    "Flatten": lower_flatten,
    "Transpose": lower_transpose,
    "Squeeze": lower_squeeze,
    "Unsqueeze": lower_unsqueeze,
    "Expand": lower_expand,
    "Tile": lower_tile,
    "DepthToSpace": lower_depth_to_space,
    "SpaceToDepth": lower_space_to_depth,
}
