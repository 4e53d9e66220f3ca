"""Blocks that several families share. Every one of them is spelled as its publication spells it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def divisible(width: float, by: int = 8) -> int:
    """`width` rounded to a multiple of `by`, never more than 10% below it (MobileNetV2's rule)."""
    rounded = max(by, int(width + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * width else rounded


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    padding: int | tuple[int, int] | None = None,
    act: Activation | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, and `act` if any; the padding keeps the map's size unless given."""
    pad = (kernel - 1) // 2 * dilation if padding is None else padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation=dilation, groups=groups, bias=False)
    tail = [act()] if act else []
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=eps), *tail)


class SqueezeExcite(nn.Module):
    """x * gate(expand(act(squeeze(mean of x)))): channel attention ("Squeeze-and-Excitation Networks", 3)."""

    def __init__(self, width: int, squeezed: int, act: Activation = nn.ReLU, gate: Activation = nn.Sigmoid) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        """Gives x: (n, c, h, w) with every channel scaled."""
        scale: Tensor = self.gate(self.expand(self.act(self.squeeze(self.pool(x)))))
        return x * scale


class Residual(nn.Module):
    """shortcut(x) + branch(x), and `act` after the sum if any."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, act: Activation | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.act = act() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Gives the sum; shapes as the branch's."""
        out: Tensor = self.act(self.branch(x) + self.shortcut(x))
        return out


class Branches(nn.Module):
    """Several branches over the same input, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, sum of the branches' channels, h, w)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Classifier(nn.Sequential):
    """Global average pool, flatten, and a linear layer (with dropout before it where asked)."""

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Dropout(dropout), nn.Linear(width, classes))


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a (n, c, h, w) map, by way of channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        """Gives the normalised map, (n, c, h, w)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Sequential):
    """Linear, GELU, Linear: the feed-forward part of a transformer block, over the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def repeat(make: Callable[[int, int], nn.Module], widths: Sequence[int]) -> nn.Sequential:
    """A chain of `make(inputs, outputs)` over neighbouring `widths`."""
    return nn.Sequential(*(make(a, b) for a, b in pairwise(widths)))
