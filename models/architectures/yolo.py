"""YOLO-style detectors: CSPDarknet with a path-aggregation neck, in the C2f form of YOLOv8 and in the Focus and C3 form
of YOLOv5 and YOLOX. Written from their block diagrams; the outputs are the heads' raw numbers, with no box decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import conv_bn

_conv = partial(conv_bn, act=nn.SiLU, eps=1e-3)
Stage = Callable[..., nn.Module]


class Bottleneck(nn.Module):
    """Two convolutions, with the input added where asked."""

    def __init__(self, width: int, *, add: bool, first: int = 3) -> None:
        super().__init__()
        self.branch, self.add = nn.Sequential(_conv(width, width, first), _conv(width, width, 3)), add

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, width, h, w)."""
        branch: Tensor = self.branch(x)
        return x + branch if self.add else branch


class C2f(nn.Module):
    """1x1, cut in two; bottlenecks chained on the second half; every piece concatenated, 1x1."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, add: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.open, self.close = _conv(inputs, outputs), _conv((2 + depth) * half, outputs)
        self.blocks = nn.ModuleList(Bottleneck(half, add=add) for _ in range(depth))
        self.piece = half

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h, w)."""
        pieces = list(self.open(x).split(self.piece, dim=1))  # exported as Split, where chunk becomes Slices
        for block in self.blocks:
            pieces.append(block(pieces[-1]))
        out: Tensor = self.close(torch.cat(pieces, dim=1))
        return out


class C3(nn.Module):
    """Two 1x1 side by side, bottlenecks on one of them, concatenated, 1x1."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, add: bool) -> None:
        super().__init__()
        half = outputs // 2
        self.work = nn.Sequential(_conv(inputs, half), *(Bottleneck(half, add=add, first=1) for _ in range(depth)))
        self.passing, self.close = _conv(inputs, half), _conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h, w)."""
        out: Tensor = self.close(torch.cat([self.work(x), self.passing(x)], dim=1))
        return out


class Focus(nn.Module):
    """Every second pixel into channels, by four strided slices, and a 3x3."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = _conv(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h / 2, w / 2) for x: (n, 3, h, w)."""
        quarters = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.conv(torch.cat(quarters, dim=1))
        return out


class Sppf(nn.Module):
    """The same 5x5 max pool three times over, all four maps concatenated between two 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.open, self.close = _conv(width, width // 2), _conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, width, h, w)."""
        maps = [self.open(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        out: Tensor = self.close(torch.cat(maps, dim=1))
        return out


class Trunk(nn.Module):
    """Stem and four stages; gives the maps of strides 8, 16 and 32."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], stem: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.stem = stem
        stages = []
        for i, (a, b) in enumerate(pairwise(widths)):
            stages.append(nn.Sequential(_conv(a, b, 3, 2), stage(b, b, depths[i], add=True)))
        stages[-1].append(Sppf(widths[-1]))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Gives three maps for x: (n, 3, h, w), sides a multiple of 32."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[-3:]


class Neck(nn.Module):
    """Down the pyramid with upsampling, up again with strides; every meeting is a concatenation and a stage."""

    def __init__(self, widths: Sequence[int], depth: int, stage: Stage) -> None:
        super().__init__()
        a, b, c = widths
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.top, self.fine = stage(b + c, b, depth, add=False), stage(a + b, a, depth, add=False)
        self.shrink = nn.ModuleList([_conv(a, a, 3, 2), _conv(b, b, 3, 2)])
        self.middle, self.coarse = stage(a + b, b, depth, add=False), stage(b + c, c, depth, add=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Gives three maps of the same shapes."""
        low, middle, high = maps
        top = self.top(torch.cat([self.up(high), middle], dim=1))
        fine = self.fine(torch.cat([self.up(top), low], dim=1))
        joined = self.middle(torch.cat([self.shrink[0](fine), top], dim=1))
        return fine, joined, self.coarse(torch.cat([self.shrink[1](joined), high], dim=1))


class Head(nn.Module):
    """Boxes and scores from two towers per level, concatenated along the channels and then over the levels."""

    def __init__(self, widths: Sequence[int], classes: int, boxes: int) -> None:
        super().__init__()

        def tower(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(_conv(inputs, hidden, 3), _conv(hidden, hidden, 3), nn.Conv2d(hidden, outputs, 1))

        self.boxes = nn.ModuleList(tower(c, max(16, widths[0] // 4), boxes) for c in widths)
        self.scores = nn.ModuleList(tower(c, max(16, widths[0] // 2), classes) for c in widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Gives (n, boxes + classes, places on all levels)."""
        levels = []
        for x, box, score in zip(maps, self.boxes, self.scores, strict=True):
            levels.append(torch.cat([box(x), score(x).sigmoid()], dim=1).flatten(2))
        return torch.cat(levels, dim=2)


class Yolo(nn.Module):
    """Trunk, neck, head."""

    def __init__(self, trunk: Trunk, neck: Neck, head: Head) -> None:
        super().__init__()
        self.trunk, self.neck, self.head = trunk, neck, head

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, boxes + classes, places) for x: (n, 3, h, w)."""
        out: Tensor = self.head(self.neck(self.trunk(x)))
        return out


def yolo_c2f(
    *, widths: Sequence[int] = (16, 32, 64, 128, 256), depths: Sequence[int] = (1, 2, 2, 1), classes: int = 80
) -> Yolo:
    """YOLOv8-nano's structure."""
    trunk = Trunk(widths, depths, _conv(3, widths[0], 3, 2), C2f)
    return Yolo(trunk, Neck(widths[-3:], 1, C2f), Head(widths[-3:], classes, 64))


def yolo_focus(
    *, widths: Sequence[int] = (24, 48, 96, 192, 384), depths: Sequence[int] = (1, 3, 3, 1), classes: int = 80
) -> Yolo:
    """YOLOX-tiny's structure: a Focus stem, C3 stages."""
    return Yolo(Trunk(widths, depths, Focus(widths[0]), C3), Neck(widths[-3:], 1, C3), Head(widths[-3:], classes, 5))
