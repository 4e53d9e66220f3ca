"""Pools and resizes: rows and columns change, channels stay apart."""

from __future__ import annotations

from . import MICROSOFT, Edit, OpRule, Scope, View, Zeros, first, spatial


def relate_pool(s: Scope) -> None:
    """Pools over rows and columns, global or not."""
    x, y = spatial("s", s.rank(0)), spatial("p", len(s.out_shape()))
    s.signature(f"n C{x} -> n C{y}")
    if len(s.node.outputs) > 1 and s.node.outputs[1]:
        for axis in (*s.in_axes(0), *s.out_axes(1)):
            s.freeze(axis, "the indices of a MaxPool count channels")


def relate_resize(s: Scope) -> None:
    """Resize and Upsample: axes that keep their length keep their channels, the others are mixed."""
    for axis, (a, b) in enumerate(zip(s.shape(0), s.out_shape(), strict=True)):
        if a == b:
            s.same(s.inp(0, axis), s.out(axis))
        else:
            s.freeze(s.inp(0, axis), f"{s.node.op_type} along this axis")
            s.freeze(s.out(axis), f"{s.node.op_type} along this axis")


def patch_resize(edit: Edit) -> None:
    """A `sizes` input follows the channels."""
    sizes = edit.ints("", 3)
    if sizes is None:
        return
    axes = edit.attr("axes", range(edit.rank(0)))
    edit.values[3] = edit.value(3)  # type: ignore[assignment]
    edit.set_ints("", 3, [edit.new_out_shape()[int(axis)] for axis in axes])


def zeros_resize(view: View) -> Zeros:
    """Resize interpolates; only a crop may put another value in."""
    return () if view.attr("coordinate_transformation_mode") == "tf_crop_and_resize" else first(view)


def relate_roi(s: Scope) -> None:
    """RoiAlign and MaxRoiPool: boxes of a feature map; channels stay."""
    s.signature("n C h w, r four, _ -> r C p q" if s.has(2) else "n C h w, r five -> r C p q")


def relate_grid_sample(s: Scope) -> None:
    """GridSample: positions come from the grid, channels stay."""
    s.signature(f"n C{spatial('s', s.rank(0))}, _ -> n C{spatial('q', len(s.out_shape()))}")
    for axis in s.in_axes(1):
        s.freeze(axis, "the grid holds coordinates")


_SINCE = {
    "MaxPool": (1, 8, 10, 11, 12, 22),
    "AveragePool": (1, 7, 10, 11, 19, 22),
    "LpPool": (1, 2, 11, 18, 22),
    "GlobalMaxPool": (1, 22),
    "GlobalAveragePool": (1, 22),
    "GlobalLpPool": (1, 2, 22),
}

RULES: dict[str, OpRule | tuple[OpRule, ...]] = {
    **{name: OpRule(relate_pool, since, zeros=first) for name, since in _SINCE.items()},
    "Resize": OpRule(relate_resize, (10, 11, 13, 18, 19), patch_resize, zeros=zeros_resize),
    "Upsample": OpRule(relate_resize, (1, 7, 9), zeros=first),
    "RoiAlign": OpRule(relate_roi, (10, 16, 22)),
    "MaxRoiPool": OpRule(relate_roi, (1, 22)),
    "GridSample": (
        OpRule(relate_grid_sample, (16, 20, 22), zeros=first),
        OpRule(relate_grid_sample, (1,), domain=MICROSOFT, zeros=first),
    ),
}
