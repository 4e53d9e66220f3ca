"""ConvNeXt ("A ConvNet for the 2020s"): depthwise 7x7, LayerNorm, an MLP in channels-last, and a scale per channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import LayerNorm2d, Mlp


class Block(nn.Module):
    """x + scale * mlp(norm(depthwise(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, width, h, w)."""
        branch: Tensor = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + self.layer_scale * branch.permute(0, 3, 1, 2)


def convnext(
    widths: Sequence[int] = (96, 192, 384, 768), depths: Sequence[int] = (3, 3, 9, 3), *, classes: int = 1000
) -> nn.Sequential:
    """ConvNeXt-T by default."""
    layers: list[nn.Module] = []
    inputs = 3
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if stage:
            layers += [LayerNorm2d(inputs, eps=1e-6), nn.Conv2d(inputs, width, 2, 2)]
        else:
            layers += [nn.Conv2d(inputs, width, 4, 4), LayerNorm2d(width, eps=1e-6)]
        layers += [Block(width) for _ in range(depth)]
        inputs = width
    head = (nn.AdaptiveAvgPool2d(1), LayerNorm2d(inputs, eps=1e-6), nn.Flatten(1), nn.Linear(inputs, classes))
    return nn.Sequential(*layers, *head)
