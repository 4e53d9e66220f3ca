"""Micro-networks: each holds one structure that pruners stumble over, and little else.

Widths differ from layer to layer and the sides of a map from each other, so that a mixed-up axis cannot hide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import Classifier, Residual, conv_bn
from .resnet import PreActivation
from .shufflenet import shuffle
from .vit import EncoderBlock
from .yolo import C2f


class FanOut(nn.Module):
    """One map read by three convolutions of different widths, each with a head; the scores are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 24, 3), conv_bn(24, 40, 3, 2))
        self.branches = nn.ModuleList(
            nn.Sequential(conv_bn(40, width, kernel), Classifier(width, 7))
            for width, kernel in ((56, 3), (32, 1), (48, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        x = self.stem(x)
        first, second, third = (branch(x) for branch in self.branches)
        out: Tensor = first + second + third
        return out


class Pyramid(nn.Module):
    """Three levels: lateral 1x1, nearest upsampling, sums from the top down, one output per level."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 40, 56)
        self.stages = nn.ModuleList(conv_bn(a, b, 3, 2) for a, b in ((3, 24), (24, 40), (40, 56)))
        self.lateral = nn.ModuleList(nn.Conv2d(c, 32, 1) for c in widths)
        self.heads = nn.ModuleList(nn.Sequential(conv_bn(32, 48, 3), nn.Conv2d(48, 5, 1)) for _ in widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gives three maps of 5 channels, finest first."""
        levels = []
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + nn.functional.interpolate(levels[i + 1], scale_factor=2.0, mode="nearest")
        fine, middle, coarse = (head(level) for head, level in zip(self.heads, levels, strict=True))
        return fine, middle, coarse


def flatten() -> nn.Sequential:
    """A map flattened whole before a linear layer: one channel feeds h * w columns."""
    features = (conv_bn(3, 24, 3, 2), nn.Conv2d(24, 40, 3, 2, 1), nn.ReLU())  # 13 x 17 becomes 4 x 5
    return nn.Sequential(*features, nn.Flatten(1), nn.Linear(40 * 4 * 5, 56), nn.ReLU(), nn.Linear(56, 7))


class ChannelsLast(nn.Module):
    """Linear layers over the last axis of a map moved to NHWC and back, inside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = conv_bn(3, 32, 3, 2), nn.Sequential(conv_bn(32, 48, 3), Classifier(48, 7))
        self.mlp = nn.Sequential(nn.Linear(32, 88), nn.GELU(), nn.Linear(88, 32))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        x = self.stem(x)
        x = x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.tail(x)
        return out


class UNet(nn.Module):
    """Two levels down and up by transposed convolution, concatenated across."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.deep = conv_bn(3, 24, 3), conv_bn(24, 40, 3, 2), conv_bn(40, 56, 3, 2)
        self.up2, self.up1 = nn.ConvTranspose2d(56, 32, 2, 2), nn.ConvTranspose2d(48, 16, 2, 2)
        self.join2, self.join1 = conv_bn(32 + 40, 48, 3), conv_bn(16 + 24, 24, 3)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 5, h, w)."""
        fine = self.enter(x)
        middle = self.down(fine)
        x = self.join2(torch.cat([self.up2(self.deep(middle)), middle], dim=1))
        out: Tensor = self.head(self.join1(torch.cat([self.up1(x), fine], dim=1)))
        return out


def preactivation() -> nn.Sequential:
    """Residual blocks whose BatchNorm reads the sum: it cannot be folded into a convolution."""
    blocks = (PreActivation(24, 24), PreActivation(24, 40, 2), PreActivation(40, 40))
    return nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), *blocks, nn.BatchNorm2d(40), nn.ReLU(), Classifier(40, 7))


def c2f() -> nn.Sequential:
    """YOLOv8's stage: chunk, chained bottlenecks, and a concatenation of every piece."""
    return nn.Sequential(conv_bn(3, 24, 3, 2), C2f(24, 40, 2, add=True), conv_bn(40, 56, 3, 2), Classifier(56, 7))


class ChannelSlice(nn.Module):
    """Three unequal, overlapping slices of one map's channels, each with a consumer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 48, 3, 2)
        self.low, self.high, self.middle = conv_bn(20, 32, 3), conv_bn(28, 32, 1), conv_bn(24, 32, 3)
        self.head = Classifier(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        x = self.stem(x)
        out: Tensor = self.head(self.low(x[:, :20]) + self.high(x[:, 20:]) + self.middle(x[:, 12:36]))
        return out


class SharedHead(nn.Module):
    """One head over the maps of two levels, as RetinaNet has it: the same weights appear in two nodes each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 24, 3, 2), conv_bn(24, 40, 3, 2)
        self.lateral = nn.ModuleList([nn.Conv2d(24, 32, 1), nn.Conv2d(40, 32, 1)])
        hidden = (nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 56, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(*hidden, nn.Conv2d(56, 5, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives two maps of 5 channels, finer first."""
        fine = self.first(x)
        coarse = self.second(fine)
        return self.head(self.lateral[0](fine)), self.head(self.lateral[1](coarse))


def pixel_shuffle() -> nn.Sequential:
    """A pixel shuffle between hidden layers: four channels before it are one after it."""
    grow = (conv_bn(3, 24, 3), nn.Conv2d(24, 4 * 20, 3, padding=1), nn.PixelShuffle(2), nn.ReLU())
    return nn.Sequential(*grow, conv_bn(20, 32, 3), nn.Conv2d(32, 3, 3, padding=1))


class ChannelShuffle(nn.Module):
    """ShuffleNet's first unit: grouped 1x1, shuffle, depthwise, 1x1; then halves that are read apart, so that a wrong
    permutation cannot cancel out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = conv_bn(3, 24, 3, 2), conv_bn(24, 48, 1, groups=2)
        self.depthwise = conv_bn(48, 48, 3, groups=48, act=None)
        self.left, self.right = conv_bn(24, 32, 1), conv_bn(24, 32, 3)
        self.head = Classifier(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        x = self.depthwise(shuffle(self.grouped(self.stem(x)), 2))
        left, right = x.chunk(2, dim=1)
        out: Tensor = self.head(self.left(left) + self.right(right))
        return out


def _group_normed(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU())


def group_norm() -> nn.Sequential:
    """GroupNorm inside residual blocks: a group's statistics run over several channels."""
    first = nn.Sequential(_group_normed(32, 48, 6), nn.Conv2d(48, 32, 3, padding=1), nn.GroupNorm(4, 32))
    second = nn.Sequential(_group_normed(32, 40, 5), nn.Conv2d(40, 32, 3, padding=1), nn.GroupNorm(4, 32))
    blocks = (Residual(first, act=nn.ReLU), Residual(second, act=nn.ReLU))
    return nn.Sequential(_group_normed(3, 32, 4), *blocks, Classifier(32, 7))


class VitBlock(nn.Module):
    """Patches, one transformer block with q, k and v from one matrix, mean, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Conv2d(3, 60, 4, 4), EncoderBlock(60, 5, 136)
        self.norm, self.head = nn.LayerNorm(60), nn.Linear(60, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(self.norm(self.block(tokens)).mean(dim=1))
        return out


class Recurrent(nn.Module):
    """A linear layer, a recurrent one, a linear one: width on the input side and hidden units."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU], *, bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(11, 24), nn.ReLU())
        self.cells = cell(24, 40, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(80 if bidirectional else 40, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, t, 7)."""
        steps, _ = self.cells(self.embed(x))
        out: Tensor = self.head(steps)
        return out


def lstm() -> Recurrent:
    """An LSTM between linear layers."""
    return Recurrent(nn.LSTM)


def gru() -> Recurrent:
    """A GRU between linear layers."""
    return Recurrent(nn.GRU)


def bidirectional_lstm() -> Recurrent:
    """An LSTM in both directions between linear layers."""
    return Recurrent(nn.LSTM, bidirectional=True)
