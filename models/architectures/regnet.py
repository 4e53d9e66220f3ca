"""RegNetY ("Designing network design spaces", 5.3): residual bottlenecks of ratio 1, grouped, with
squeeze-and-excite."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Classifier, Residual, SqueezeExcite, conv_bn


def _block(inputs: int, outputs: int, stride: int, group_width: int) -> Residual:
    branch = nn.Sequential(
        conv_bn(inputs, outputs),
        conv_bn(outputs, outputs, 3, stride, groups=outputs // group_width),
        SqueezeExcite(outputs, round(inputs / 4)),
        conv_bn(outputs, outputs, act=None),
    )
    plain = stride == 1 and inputs == outputs
    return Residual(branch, None if plain else conv_bn(inputs, outputs, 1, stride, act=None), nn.ReLU)


def regnet_y(
    widths: Sequence[int] = (48, 104, 208, 440),
    depths: Sequence[int] = (1, 3, 6, 6),
    *,
    group_width: int = 8,
    classes: int = 1000,
) -> nn.Sequential:
    """RegNetY-400MF by default."""
    inputs = 32
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2)]
    for width, depth in zip(widths, depths, strict=True):
        for i in range(depth):
            layers.append(_block(inputs, width, 1 if i else 2, group_width))
            inputs = width
    return nn.Sequential(*layers, Classifier(inputs, classes))
