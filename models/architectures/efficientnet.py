"""EfficientNet-B0 and EfficientNetV2-S ("EfficientNet", table 1; "EfficientNetV2", table 4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Classifier, Residual, SqueezeExcite, conv_bn, divisible
from .mobilenet import inverted

# fused, expansion, kernel, stride, outputs, repeats
Stage = tuple[bool, int, int, int, int, int]
B0: tuple[Stage, ...] = (
    *((False, 1, 3, 1, 16, 1), (False, 6, 3, 2, 24, 2), (False, 6, 5, 2, 40, 2), (False, 6, 3, 2, 80, 3)),
    *((False, 6, 5, 1, 112, 3), (False, 6, 5, 2, 192, 4), (False, 6, 3, 1, 320, 1)),
)
V2_S: tuple[Stage, ...] = (
    *((True, 1, 3, 1, 24, 2), (True, 4, 3, 2, 48, 4), (True, 4, 3, 2, 64, 4)),
    *((False, 4, 3, 2, 128, 6), (False, 6, 3, 1, 160, 9), (False, 6, 3, 2, 256, 15)),
)


def _fused(inputs: int, expand: int, outputs: int, kernel: int, stride: int, eps: float) -> nn.Module:
    if expand == 1:
        branch = conv_bn(inputs, outputs, kernel, stride, act=nn.SiLU, eps=eps)
    else:
        hidden = inputs * expand
        widen = conv_bn(inputs, hidden, kernel, stride, act=nn.SiLU, eps=eps)
        branch = nn.Sequential(widen, conv_bn(hidden, outputs, act=None, eps=eps))
    return Residual(branch) if stride == 1 and inputs == outputs else branch


def _mbconv(inputs: int, expand: int, outputs: int, kernel: int, stride: int, eps: float) -> nn.Module:
    hidden = inputs * expand
    attention = SqueezeExcite(hidden, max(1, inputs // 4), act=nn.SiLU)
    return inverted(inputs, hidden, outputs, kernel, stride, act=nn.SiLU, eps=eps, attention=attention)


def efficientnet(
    stages: Sequence[Stage], *, stem: int, eps: float, width: float = 1.0, depth: float = 1.0, classes: int = 1000
) -> nn.Sequential:
    """An EfficientNet of the given stages; `width` and `depth` scale channels and repeats."""
    inputs = divisible(stem * width)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2, act=nn.SiLU, eps=eps)]
    for fused, expand, kernel, stride, channels, repeats in stages:
        outputs = divisible(channels * width)
        make = _fused if fused else _mbconv
        for i in range(max(1, round(repeats * depth))):
            layers.append(make(inputs, expand, outputs, kernel, 1 if i else stride, eps))
            inputs = outputs
    last = divisible(1280 * width)
    return nn.Sequential(*layers, conv_bn(inputs, last, act=nn.SiLU, eps=eps), Classifier(last, classes, dropout=0.2))


def efficientnet_b0(*, width: float = 1.0, depth: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """EfficientNet-B0: squeeze-and-excite in every inverted residual, SiLU."""
    return efficientnet(B0, stem=32, eps=1e-5, width=width, depth=depth, classes=classes)


def efficientnet_v2_s(*, width: float = 1.0, depth: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """EfficientNetV2-S: the early stages are fused into plain 3x3 convolutions."""
    return efficientnet(V2_S, stem=24, eps=1e-3, width=width, depth=depth, classes=classes)
