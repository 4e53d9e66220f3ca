"""Networks with several inputs, several outputs, or one tower used twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Residual, conv_bn, repeat


def _tower(channels: int, widths: Sequence[int]) -> nn.Sequential:
    stem = conv_bn(channels, widths[0], 3, 2)
    return nn.Sequential(stem, repeat(lambda a, b: conv_bn(a, b, 3, 2), widths))


class TwoTowers(nn.Module):
    """An image and a vector of numbers, each through its own tower, concatenated, and classified."""

    def __init__(self, widths: Sequence[int], numbers: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.image = nn.Sequential(_tower(3, widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.table = nn.Sequential(nn.Linear(numbers, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.join = nn.Sequential(nn.Linear(widths[-1] + hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        """Gives (n, classes) for image: (n, 3, h, w) and table: (n, numbers)."""
        out: Tensor = self.join(torch.cat([self.image(image), self.table(table)], dim=1))
        return out


def two_towers(
    *, widths: Sequence[int] = (32, 64, 128), numbers: int = 29, hidden: int = 96, classes: int = 7
) -> TwoTowers:
    """Image and table."""
    return TwoTowers(widths, numbers, hidden, classes)


class Siamese(nn.Module):
    """The same tower over two images; the distance of its two results, classified."""

    def __init__(self, widths: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        self.tower = nn.Sequential(_tower(3, widths), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.head = nn.Sequential(nn.Linear(widths[-1], hidden), nn.ReLU(), nn.Linear(hidden, classes))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Gives (n, classes) for two images (n, 3, h, w)."""
        out: Tensor = self.head((self.tower(left) - self.tower(right)).abs())
        return out


def siamese(*, widths: Sequence[int] = (32, 64, 128), hidden: int = 48, classes: int = 5) -> Siamese:
    """Two images, one tower."""
    return Siamese(widths, hidden, classes)


class ManyHeads(nn.Module):
    """One trunk; a class, a box, and the trunk's own map as outputs, so that the map's channels are part of the
    interface."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        width = widths[-1]
        block = nn.Sequential(conv_bn(width, 2 * width, 3), conv_bn(2 * width, width, 3, act=None))
        self.trunk = nn.Sequential(_tower(3, widths), Residual(block, act=nn.ReLU))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.label = nn.Linear(width, classes)
        self.box = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives (n, classes), (n, 4) and (n, width, h / 8, w / 8) for x: (n, 3, h, w)."""
        features: Tensor = self.trunk(x)
        pooled = self.pool(features)
        return self.label(pooled), self.box(pooled), features


def many_heads(*, widths: Sequence[int] = (32, 64, 96), classes: int = 20) -> ManyHeads:
    """Three outputs."""
    return ManyHeads(widths, classes)
