"""Micro-networks for the pruner's tests: one structure each, and networks that other pruners are known to fail on.

Importing this module does not import torch; building a network does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .spec import Architecture, Input, lazy

__all__ = ["MICRO_NETS"]

_IMAGE = Input((1, 3, 13, 17))
_EVEN = Input((1, 3, 20, 28))
_VECTOR = Input((1, 19))
_LEVELS = ("fine", "middle", "coarse")


def _micro(
    name: str, builder: str, spec: Input = _IMAGE, *, outputs: tuple[str, ...] = ("output",), opset: int = 7
) -> Architecture:
    module, function = builder.split(".")
    inputs = MappingProxyType({"input": spec})
    family = "regression" if module == "micro_regressions" else "micro"
    return Architecture(name, family, lazy(f"architectures.{module}", function), inputs, outputs, opset)


_ALL = (
    _micro("fan_out", "micro_nets.FanOut"),
    _micro("fpn", "micro_nets.Pyramid", Input((1, 3, 24, 40)), outputs=_LEVELS, opset=9),
    _micro("flatten", "micro_nets.flatten"),
    _micro("nhwc_linear", "micro_nets.ChannelsLast", opset=9),
    _micro("unet", "micro_nets.UNet", _EVEN),
    _micro("preactivation", "micro_nets.preactivation"),
    _micro("c2f", "micro_nets.c2f"),
    _micro("channel_slice", "micro_nets.ChannelSlice"),
    _micro("shared_head", "micro_nets.SharedHead", outputs=("fine", "coarse")),
    _micro("pixel_shuffle", "micro_nets.pixel_shuffle"),
    _micro("channel_shuffle", "micro_nets.ChannelShuffle"),
    _micro("group_norm", "micro_nets.group_norm"),
    _micro("vit_block", "micro_nets.VitBlock", _EVEN, opset=9),
    _micro("lstm", "micro_nets.lstm", Input((1, 13, 11)), opset=9),
    _micro("gru", "micro_nets.gru", Input((1, 13, 11)), opset=9),
    _micro("bidirectional_lstm", "micro_nets.bidirectional_lstm", Input((1, 13, 11)), opset=9),
    _micro("view_before_deconvolution", "micro_regressions.ViewBeforeDeconvolution", _VECTOR),
    _micro("single_channel", "micro_regressions.SingleChannel", _EVEN),
    _micro("depthwise_chain", "micro_regressions.depthwise_chain", _EVEN),
    _micro("nested_concat", "micro_regressions.NestedConcat", _EVEN, opset=9),
    _micro("flat_conv1d", "micro_regressions.flat_conv1d", Input((1, 2, 53))),
    _micro("wide_and_deep", "micro_regressions.WideAndDeep", _VECTOR),
    _micro("depthwise_residual", "micro_regressions.DepthwiseResidual", _EVEN, opset=9),
)

MICRO_NETS: Mapping[str, Architecture] = MappingProxyType({a.name: a for a in _ALL})
