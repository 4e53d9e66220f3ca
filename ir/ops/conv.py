"""Convolutions: Y[n, o, p] = sum over c, k of X[n, c, p + k] * W[o, c, k] + B[o].

One signature serves them all: G groups, C input and O output channels in each. Plain is G = 1, depthwise C = 1; a
factor of size 1 is no channel axis. Whole groups, the inputs of each and the outputs of each can all be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import ShapeError
from ..graph import Shape
from . import MICROSOFT, Edit, OpRule, Scope, View, spatial, weights


def relate_conv(s: Scope) -> None:
    """Conv, plain, grouped or depthwise, with any number of spatial axes."""
    x, k, y = (spatial(letter, s.rank(slot)) for letter, slot in (("s", 0), ("k", 1), ("p", 0)))
    residual = f", n (G O){y}" if s.has(3) else ""
    s.signature(f"n (G C){x}, (G O) C{k}, (G O){residual} -> n (G O){y}", G=_groups(s))


def relate_conv_transpose(s: Scope) -> None:
    """ConvTranspose: the weight is (G C) O k."""
    x, k, y = (spatial(letter, s.rank(slot)) for letter, slot in (("s", 0), ("k", 1), ("p", 0)))
    s.signature(f"n (G C){x}, (G C) O{k}, (G O) -> n (G O){y}", G=_groups(s))
    if _groups(s) < s.shape(1)[0]:
        s.contract(s.inp(1, 0))


def relate_deform_conv(s: Scope) -> None:
    """DeformConv: a Conv whose taps are moved by offsets, the same for all channels; X, W, offset, B, mask."""
    if int(s.attr("offset_group", 1)) != 1:
        raise ShapeError("channels have offsets of their own, group by group")
    x, k, y = (spatial(letter, s.rank(slot)) for letter, slot in (("s", 0), ("k", 1), ("p", 0)))
    s.signature(f"n (G C){x}, (G O) C{k}, _, (G O), _ -> n (G O){y}", G=_groups(s))


def _groups(s: View) -> int:
    return int(s.attr("group", 1))


def patch_groups(edit: Edit, slot: int = 1, x_slot: int = 0) -> None:
    """`group` follows: input channels over the weight's input channels per group."""
    groups = _groups(edit)
    if groups > 1:
        edit.attrs["group"] = edit.new_shape(x_slot)[1] // edit.new_shape(slot)[1]


def patch_transposed_groups(edit: Edit) -> None:
    """`group` follows: output channels over the weight's output channels per group."""
    if _groups(edit) > 1:
        edit.attrs["group"] = edit.new_out_shape()[1] // edit.new_shape(1)[1]


def macs_conv(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Output elements times the weights behind each of them."""
    return _product(outs[0]) * _product(ins[1][1:])


def macs_conv_transpose(view: View, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Input elements times the weights that each of them meets."""
    return _product(ins[0]) * _product(ins[1][1:])


def relate_qlinear_conv(s: Scope) -> None:
    """QLinearConv: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B."""
    x, k, y = (spatial(letter, s.rank(slot)) for letter, slot in (("s", 0), ("k", 3), ("p", 0)))
    scale, zero = (_per_channel(s, slot) for slot in (4, 5))
    text = f"n (G C){x}, _, _, (G O) C{k}, {scale}, {zero}, _, "
    s.signature(text + f"_, (G O) -> n (G O){y}", G=_groups(s))


def relate_conv_integer(s: Scope) -> None:
    """ConvInteger: x, w, x_zero, w_zero."""
    x, k, y = (spatial(letter, s.rank(slot)) for letter, slot in (("s", 0), ("k", 1), ("p", 0)))
    zero = _per_channel(s, 3)
    s.signature(f"n (G C){x}, (G O) C{k}, _, {zero} -> n (G O){y}", G=_groups(s))


def _per_channel(s: Scope, slot: int) -> str:
    return "(G O)" if s.has(slot) and s.rank(slot) == 1 and s.shape(slot)[0] > 1 else "_"


def _product(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


RULES = {
    "Conv": OpRule(relate_conv, (1, 11, 22), patch_groups, macs_conv, zeros=weights),
    "ConvTranspose": OpRule(
        relate_conv_transpose, (1, 11, 22), patch_transposed_groups, macs_conv_transpose, zeros=weights
    ),
    "ConvInteger": OpRule(
        relate_conv_integer,
        (10,),
        patch_groups,
        macs_conv,
        zeros=lambda view: ((1,),),
        zero_points=lambda view: {1: (3, 0)},
    ),
    "DeformConv": OpRule(relate_deform_conv, (19, 22), patch_groups, macs_conv, zeros=lambda view: ((1, 3),)),
    "QLinearConv": OpRule(
        relate_qlinear_conv,
        (10,),
        lambda edit: patch_groups(edit, 3),
        lambda view, ins, outs: _product(outs[0]) * _product(ins[3][1:]),
        zero_points=lambda view: {3: (5, 0)},
    ),
    "FusedConv": OpRule(relate_conv, (1,), patch_groups, macs_conv, domain=MICROSOFT),
}
