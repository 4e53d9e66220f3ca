"""ShuffleNetV2 ("ShuffleNet V2", figure 3 c and d): channel split, concatenation and channel shuffle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Classifier, conv_bn


def shuffle(x: Tensor, groups: int) -> Tensor:
    """x: (n, groups * c, h, w) with the channels dealt out like cards: position g * c + i goes to i * groups + g."""
    n, channels, h, w = x.shape
    return x.view(n, groups, channels // groups, h, w).transpose(1, 2).reshape(n, channels, h, w)


class Unit(nn.Module):
    """Stride 1: half of the channels pass by; stride 2: both branches convolve."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.split = stride == 1
        self.near = (
            None
            if self.split
            else nn.Sequential(conv_bn(inputs, inputs, 3, stride, groups=inputs, act=None), conv_bn(inputs, half))
        )
        self.far = nn.Sequential(
            conv_bn(half if self.split else inputs, half),
            conv_bn(half, half, 3, stride, groups=half, act=None),
            conv_bn(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h / stride, w / stride)."""
        if self.near is None:
            kept, worked = x.chunk(2, dim=1)
            return shuffle(torch.cat([kept, self.far(worked)], dim=1), 2)
        return shuffle(torch.cat([self.near(x), self.far(x)], dim=1), 2)


def shufflenet_v2(
    widths: Sequence[int] = (24, 116, 232, 464, 1024), *, depths: Sequence[int] = (4, 8, 4), classes: int = 1000
) -> nn.Sequential:
    """ShuffleNetV2 x1.0 by default."""
    layers: list[nn.Module] = [conv_bn(3, widths[0], 3, 2), nn.MaxPool2d(3, 2, 1)]
    for i, depth in enumerate(depths):
        layers += [Unit(widths[i] if j == 0 else widths[i + 1], widths[i + 1], 1 if j else 2) for j in range(depth)]
    return nn.Sequential(*layers, conv_bn(widths[-2], widths[-1]), Classifier(widths[-1], classes))
