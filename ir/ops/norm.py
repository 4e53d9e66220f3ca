"""Normalisations. Those over rows and columns leave channels apart; those over channels cannot lose one exactly."""

from __future__ import annotations

from . import MICROSOFT, Edit, OpRule, Scope, first, spatial, weights
from .elementwise import broadcast_into


def relate_batch_norm(s: Scope) -> None:
    """BatchNormalization: scale, bias, mean and variance per channel."""
    x = spatial("S", s.rank(0)) if s.rank(0) > 1 else ""
    text = f"N C{x}" if s.rank(0) > 1 else "C"
    s.signature(f"{text}, C, C, C, C -> {text}, C, C, C, C")


def relate_instance_norm(s: Scope) -> None:
    """InstanceNormalization: statistics over rows and columns of each channel."""
    x = spatial("s", s.rank(0))
    s.signature(f"n C{x}, C, C -> n C{x}")


def relate_group_norm(s: Scope) -> None:
    """GroupNormalization: whole groups of channels can go; scale and bias are per group before opset 21."""
    x = spatial("s", s.rank(0))
    affine = "(G c)" if s.shape(1)[0] == s.shape(0)[1] else "G"
    s.signature(f"n (G c){x}, {affine}, {affine} -> n (G c){x}", G=int(s.attr("num_groups")))


def patch_group_norm(edit: Edit) -> None:
    """`num_groups` follows."""
    old = int(edit.attr("num_groups"))
    edit.attrs["num_groups"] = old * edit.new_shape(0)[1] // edit.shape(0)[1]


def relate_layer_norm(s: Scope) -> None:
    """LayerNormalization and RMSNormalization: all axes from `axis` on are normalised together."""
    broadcast_into(s, range(len(s.node.inputs)))
    mean_from(s, s.axis(-1, s.rank(0)))


def relate_skip_layer_norm(s: Scope) -> None:
    """com.microsoft.SkipLayerNormalization: the sum of two streams, then a LayerNormalization over the last axis."""
    for slot in range(len(s.node.inputs)):
        if s.has(slot):
            for place in range(s.rank(slot)):
                s.same(s.inp(slot, -1 - place), s.out(-1 - place))
    for number, name in enumerate(s.node.outputs):
        if number == 3 and name:
            for axis, other in zip(s.out_axes(3), s.out_axes(), strict=True):
                s.same(axis, other)
    mean_from(s, s.rank(0) - 1)


def mean_from(s: Scope, start: int) -> None:
    """States that mean and variance are over the axes from `start` on."""
    s.mean([s.inp(0, axis) for axis in range(start, s.rank(0))], f"{s.node.op_type} mixes all channels of this axis")


def relate_over_axis(s: Scope) -> None:
    """LpNormalization: the norm over one axis is a sum, to which a channel that is zero adds nothing."""
    broadcast_into(s, (0,))
    s.contract(s.inp(0, s.axis(-1, s.rank(0))))


def relate_lrn(s: Scope) -> None:
    """LRN: each channel is divided by a norm over its neighbours."""
    broadcast_into(s, (0,))
    s.freeze(s.inp(0, 1), "LRN mixes neighbouring channels")


def relate_mean_variance(s: Scope) -> None:
    """MeanVarianceNormalization over `axes`, by default all but channels."""
    broadcast_into(s, (0,))
    for axis in s.attr("axes", (0, 2, 3)):
        s.freeze(s.inp(0, int(axis)), "MeanVarianceNormalization mixes all positions of this axis")


RULES = {
    "BatchNormalization": OpRule(relate_batch_norm, (1, 6, 7, 9, 14, 15), zeros=weights),
    "InstanceNormalization": OpRule(relate_instance_norm, (1, 6, 22), zeros=weights),
    "GroupNormalization": OpRule(relate_group_norm, (18, 21), patch_group_norm),
    "LayerNormalization": OpRule(relate_layer_norm, (1, 17), zeros=weights),
    "RMSNormalization": OpRule(relate_layer_norm, (23,), zeros=weights),
    "LpNormalization": OpRule(relate_over_axis, (1, 22), zeros=first),
    "LRN": OpRule(relate_lrn, (1, 13)),
    "MeanVarianceNormalization": OpRule(relate_mean_variance, (9, 13)),
    "SkipLayerNormalization": OpRule(relate_skip_layer_norm, (1,), domain=MICROSOFT),
    "SkipSimplifiedLayerNormalization": OpRule(relate_skip_layer_norm, (1,), domain=MICROSOFT),
    "SimplifiedLayerNormalization": OpRule(relate_layer_norm, (1,), zeros=weights),
}
