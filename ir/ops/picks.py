"""Operators that pick, place or mask single elements: along the axis they count on nothing can go, elsewhere it can."""

from __future__ import annotations

from math import prod

import numpy as np

from ..errors import ShapeError
from . import Edit, OpRule, Scope, first
from .elementwise import broadcast_into


def relate_gather_elements(s: Scope) -> None:
    """GatherElements: output and indices have one shape; where that is the data's, positions belong together."""
    along = s.axis(0, s.rank(0))
    for axis, (a, b) in enumerate(zip(s.shape(0), s.out_shape(), strict=True)):
        s.same(s.inp(1, axis), s.out(axis))
        if axis != along and a == b:
            s.same(s.inp(0, axis), s.out(axis))
        else:
            for place in (s.inp(0, axis), s.out(axis)):
                s.freeze(place, "GatherElements counts positions of this axis")


def relate_scatter_elements(s: Scope) -> None:
    """ScatterElements: the output has the data's shape, indices and updates one of their own."""
    along = s.axis(0, s.rank(0))
    for axis, (a, b) in enumerate(zip(s.shape(0), s.shape(2), strict=True)):
        s.same(s.inp(0, axis), s.out(axis))
        s.same(s.inp(1, axis), s.inp(2, axis))
        if axis != along and a == b:
            s.same(s.inp(2, axis), s.out(axis))
        else:
            for place in (s.inp(0, axis), s.inp(2, axis)):
                s.freeze(place, f"{s.node.op_type} counts positions of this axis")


def relate_gather_nd(s: Scope) -> None:
    """GatherND: the data's first axes are counted on, its last ones go through to the output's last ones."""
    batch, counted = int(s.attr("batch_dims", 0)), s.shape(1)[-1]
    for axis in range(s.rank(0)):
        if axis < batch:
            s.same(s.inp(0, axis), s.out(axis))
        elif axis < batch + counted:
            s.freeze(s.inp(0, axis), "GatherND counts positions of this axis")
        else:
            s.same(s.inp(0, axis), s.out(axis - s.rank(0)))
    for axis in range(s.rank(1) - 1):
        s.same(s.inp(1, axis), s.out(axis))
    s.freeze(s.inp(1, -1))


def relate_scatter_nd(s: Scope) -> None:
    """ScatterND: updates are laid over the last axes of the data, at places counted on its first ones."""
    counted = s.shape(1)[-1]
    for axis in range(s.rank(0)):
        s.same(s.inp(0, axis), s.out(axis))
        if axis < counted:
            s.freeze(s.inp(0, axis), "ScatterND counts positions of this axis")
        else:
            s.same(s.inp(2, axis - s.rank(0)), s.out(axis))
    for axis in range(s.rank(1) - 1):
        s.same(s.inp(1, axis), s.inp(2, axis))
        s.freeze(s.inp(1, axis), "ScatterND places something at each of them")
    s.freeze(s.inp(1, -1))


def relate_one_hot(s: Scope) -> None:
    """OneHot: a new axis of as many places as there are classes."""
    new = s.axis(-1, len(s.out_shape()))
    s.freeze(s.out(new), "OneHot makes a place for each class")
    for axis in range(s.rank(0)):
        s.same(s.inp(0, axis), s.out(axis + (axis >= new)))


def relate_reverse_sequence(s: Scope) -> None:
    """ReverseSequence: steps are reversed up to a length for each of the batch."""
    broadcast_into(s, (0,))
    for name, default in (("time_axis", 0), ("batch_axis", 1)):
        s.freeze(s.inp(0, s.axis(default, s.rank(0), name)), "ReverseSequence counts positions of this axis")


def relate_compress(s: Scope) -> None:
    """Compress: flags choose positions of an axis, or of all elements in a row."""
    if "axis" not in s.node.attrs:
        raise ShapeError("all elements are taken in a row")
    along = s.axis(0, s.rank(0))
    for axis in range(s.rank(0)):
        if axis != along:
            s.same(s.inp(0, axis), s.out(axis))
    s.freeze(s.inp(0, along), "Compress counts positions of this axis")
    s.freeze(s.out(along), "Compress counts positions of this axis")


def relate_trilu(s: Scope) -> None:
    """Trilu: the triangle is a matter of positions on the last two axes."""
    broadcast_into(s, (0,))
    for axis in (-1, -2):
        s.freeze(s.inp(0, axis), "Trilu compares positions of this axis")


def relate_eye_like(s: Scope) -> None:
    """EyeLike: ones where two positions are equal."""
    for axis in (*s.in_axes(0), *s.out_axes()):
        s.freeze(axis, "EyeLike compares positions of this axis")


def relate_range(s: Scope) -> None:
    """Range: numbers in a row, of which none can go."""
    for axis in s.out_axes():
        s.freeze(axis, "Range counts")


def relate_col2im(s: Scope) -> None:
    """Col2Im: blocks of pixels, stored under each other for each channel, are laid back into rows and columns."""
    block = s.value(2)
    if block is None:
        raise ShapeError("the block is computed at run time")
    pixels = " ".join(f"p{axis}" for axis in range(len(s.out_shape()) - 2))
    s.signature(f"n (C b) l -> n C {pixels}", b=prod(int(size) for size in block.reshape(-1)))


def relate_center_crop_pad(s: Scope) -> None:
    """CenterCropPad: axes that change their length are held."""
    for axis, (a, b) in enumerate(zip(s.shape(0), s.out_shape(), strict=True)):
        s.same(s.out(axis), s.out(axis))
        if a == b:
            s.same(s.inp(0, axis), s.out(axis))
        else:
            s.freeze(s.inp(0, axis), "CenterCropPad along this axis")
            s.freeze(s.out(axis), "CenterCropPad along this axis")


def patch_center_crop_pad(edit: Edit) -> None:
    """The target shape follows."""
    axes = edit.attr("axes", range(edit.rank(0)))
    if edit.ints("", 1) is not None:
        edit.set_ints("", 1, [edit.new_out_shape()[int(axis)] for axis in axes])


def relate_crop(s: Scope) -> None:
    """Crop (before opset 7): rows and columns are cut."""
    s.signature("n C h w -> n C p q")


def relate_image_scaler(s: Scope) -> None:
    """ImageScaler (before opset 7): a factor for all, a bias for each channel in an attribute."""
    broadcast_into(s, (0,))


def patch_image_scaler(edit: Edit) -> None:
    """The biases of the channels that stay."""
    kept = edit.kept_in(0, 1)
    if "bias" in edit.node.attrs:
        edit.attrs["bias"] = [float(b) for b in np.asarray(edit.attr("bias"))[kept]]


def relate_affine(s: Scope) -> None:
    """Affine (before opset 7): a factor and a bias for all elements."""
    broadcast_into(s, (0,))


RULES: dict[str, OpRule] = {
    "Affine": OpRule(relate_affine, (1,)),
    "CenterCropPad": OpRule(relate_center_crop_pad, (18,), patch_center_crop_pad),
    "Col2Im": OpRule(relate_col2im, (18,), zeros=first),
    "Compress": OpRule(relate_compress, (9, 11, 28), zeros=first),
    "Crop": OpRule(relate_crop, (1,), zeros=first),
    "EyeLike": OpRule(relate_eye_like, (9, 22)),
    "GatherElements": OpRule(relate_gather_elements, (11, 13), zeros=first),
    "GatherND": OpRule(relate_gather_nd, (11, 12, 13), zeros=first),
    "ImageScaler": OpRule(relate_image_scaler, (1,), patch_image_scaler),
    "OneHot": OpRule(relate_one_hot, (9, 11, 28)),
    "Range": OpRule(relate_range, (11, 27)),
    "ReverseSequence": OpRule(relate_reverse_sequence, (10, 28), zeros=first),
    "Scatter": OpRule(relate_scatter_elements, (9,)),
    "ScatterElements": OpRule(relate_scatter_elements, (11, 13, 16, 18)),
    "ScatterND": OpRule(relate_scatter_nd, (11, 13, 16, 18)),
    "Trilu": OpRule(relate_trilu, (14,), zeros=first),
}
