"""DenseNet ("Densely connected convolutional networks"): every layer reads all maps before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import Classifier


class DenseLayer(nn.Module):
    """x and `growth` new channels made from it: cat(x, conv3x3(bn relu conv1x1(bn relu x)))."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        middle = 4 * growth
        self.branch = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, middle, 1, bias=False)),
            *(nn.BatchNorm2d(middle), nn.ReLU(), nn.Conv2d(middle, growth, 3, padding=1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, inputs + growth, h, w)."""
        return torch.cat([x, self.branch(x)], dim=1)


def _transition(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), conv, nn.AvgPool2d(2, 2))


def densenet(
    depths: Sequence[int] = (6, 12, 24, 16), *, growth: int = 32, stem: int = 64, classes: int = 1000
) -> nn.Sequential:
    """DenseNet-121 by default."""
    layers: list[nn.Module] = [nn.Conv2d(3, stem, 7, 2, 3, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    width = stem
    for stage, depth in enumerate(depths):
        if stage:
            layers.append(_transition(width, width // 2))
            width //= 2
        layers += [DenseLayer(width + i * growth, growth) for i in range(depth)]
        width += depth * growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), Classifier(width, classes))
