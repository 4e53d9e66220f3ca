"""GhostNet ("GhostNet: more features from cheap operations", table 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import SqueezeExcite, conv_bn, divisible


class Ghost(nn.Module):
    """A 1x1 convolution for the first half of the channels, a depthwise one of those for the second."""

    def __init__(self, inputs: int, outputs: int, *, relu: bool) -> None:
        super().__init__()
        self.outputs = outputs
        first = (outputs + 1) // 2
        act = nn.ReLU if relu else None
        self.primary = conv_bn(inputs, first, act=act)
        self.cheap = conv_bn(first, first, 3, groups=first, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h, w)."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.outputs]


class Bottleneck(nn.Module):
    """Ghost, (depthwise stride 2,) (squeeze-and-excite,) ghost, added to the shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [Ghost(inputs, hidden, relu=True)]
        if stride > 1:
            layers.append(conv_bn(hidden, hidden, kernel, stride, groups=hidden, act=None))
        if squeeze:
            layers.append(SqueezeExcite(hidden, divisible(hidden / 4, 4), gate=nn.Hardsigmoid))
        layers.append(Ghost(hidden, outputs, relu=False))
        self.branch = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            depthwise = conv_bn(inputs, inputs, kernel, stride, groups=inputs, act=None)
            self.shortcut = nn.Sequential(depthwise, conv_bn(inputs, outputs, act=None))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h / stride, w / stride)."""
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


# kernel, hidden, outputs, squeeze-and-excite, stride
_PLAN = (
    *((3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2)),
    *((5, 120, 40, True, 1), (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1)),
    *((3, 184, 80, False, 1), (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2)),
    *((5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)),
)


def ghostnet(*, width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """GhostNet 1.0x by default."""
    inputs = divisible(16 * width, 4)
    layers: list[nn.Module] = [conv_bn(3, inputs, 3, 2)]
    for kernel, hidden, outputs, squeeze, stride in _PLAN:
        wide, narrow = divisible(hidden * width, 4), divisible(outputs * width, 4)
        layers.append(Bottleneck(inputs, wide, narrow, kernel, stride, squeeze))
        inputs = narrow
    last, hidden = divisible(960 * width, 4), divisible(1280 * width, 4)
    head = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, hidden, 1), nn.ReLU(), nn.Flatten(1), nn.Dropout(0.2))
    return nn.Sequential(*layers, conv_bn(inputs, last), *head, nn.Linear(hidden, classes))
