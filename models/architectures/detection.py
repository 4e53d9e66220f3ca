"""Detectors built on a ResNet trunk: a bare feature pyramid ("Feature pyramid networks"), RetinaNet ("Focal loss"), SSD
("SSD: single shot multibox detector") over VGG, and CenterNet's head with its peaks picked inside the graph
("Objects as points")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .blocks import conv_bn
from .resnet import Trunk


class Pyramid(nn.Module):
    """Lateral 1x1 convolutions, upsampled sums from the top down, a 3x3 per level, and two levels more on top."""

    def __init__(self, inputs: Sequence[int], width: int, *, extra: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in inputs)
        strided = (nn.Conv2d(width, width, 3, 2, 1) for _ in range(2))
        self.extra = nn.ModuleList(strided if extra else ())

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Gives one (n, width, h, w) per map, finest first, and the extra levels after them."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + nn.functional.interpolate(levels[i], scale_factor=2.0, mode="nearest")
        out = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        for i, conv in enumerate(self.extra):
            out.append(conv(out[-1] if i == 0 else out[-1].relu()))
        return out


class FeaturePyramid(nn.Module):
    """Trunk and pyramid; its levels are the outputs."""

    def __init__(self, trunk: Trunk, width: int) -> None:
        super().__init__()
        self.trunk, self.pyramid = trunk, Pyramid(trunk.widths, width, extra=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Gives four maps of strides 4, 8, 16, 32 for x: (n, 3, h, w), sides a multiple of 32."""
        return tuple(self.pyramid(self.trunk(x)))


def fpn(*, depths: Sequence[int] = (2, 2, 2, 2), planes: int = 64, width: int = 256) -> FeaturePyramid:
    """A pyramid over ResNet-18."""
    return FeaturePyramid(Trunk(depths, planes=planes), width)


class RetinaNet(nn.Module):
    """Five pyramid levels through the same two towers; the boxes of all levels in one list."""

    def __init__(self, trunk: Trunk, width: int, classes: int, anchors: int, tower: int) -> None:
        super().__init__()
        self.trunk, self.classes = trunk, classes
        self.pyramid = Pyramid(trunk.widths[1:], width, extra=True)
        self.class_tower = self._tower(width, tower, anchors * classes)
        self.box_tower = self._tower(width, tower, anchors * 4)

    @staticmethod
    def _tower(width: int, depth: int, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives scores (n, boxes, classes) and boxes (n, boxes, 4) for x: (n, 3, h, w)."""
        levels = self.pyramid(self.trunk(x)[1:])
        scores = [_listed(self.class_tower(level), self.classes) for level in levels]
        boxes = [_listed(self.box_tower(level), 4) for level in levels]
        return torch.cat(scores, dim=1).sigmoid(), torch.cat(boxes, dim=1)


def _listed(x: Tensor, numbers: int) -> Tensor:
    """x: (n, anchors * numbers, h, w) as a list of boxes: (n, h * w * anchors, numbers)."""
    n, _, h, w = x.shape
    return x.view(n, -1, numbers, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, numbers)


def retinanet(
    *,
    depths: Sequence[int] = (3, 4, 6, 3),
    planes: int = 64,
    deep: bool = True,
    width: int = 256,
    classes: int = 91,
    anchors: int = 9,
    tower: int = 4,
) -> RetinaNet:
    """RetinaNet over ResNet-50."""
    return RetinaNet(Trunk(depths, planes=planes, deep=deep), width, classes, anchors, tower)


class Ssd(nn.Module):
    """VGG-like trunk, extra strided levels, and on every level a 3x3 for scores and one for boxes."""

    def __init__(self, widths: Sequence[int], extras: Sequence[int], classes: int, anchors: Sequence[int]) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        inputs = 3
        for width in widths:
            stages.append(nn.Sequential(*self._pair(inputs, width), nn.MaxPool2d(2, 2, ceil_mode=True)))
            inputs = width
        top = nn.Sequential(*self._pair(inputs, inputs))
        self.stem, self.levels = nn.Sequential(*stages[:-1]), nn.ModuleList([stages[-1], top])
        for width in extras:
            squeeze = (nn.Conv2d(inputs, width // 2, 1), nn.ReLU())
            self.levels.append(nn.Sequential(*squeeze, nn.Conv2d(width // 2, width, 3, 2, 1), nn.ReLU()))
            inputs = width
        outputs = (widths[-1], widths[-1], *extras)
        self.scores = nn.ModuleList(
            nn.Conv2d(c, a * classes, 3, padding=1) for c, a in zip(outputs, anchors, strict=True)
        )
        self.boxes = nn.ModuleList(nn.Conv2d(c, a * 4, 3, padding=1) for c, a in zip(outputs, anchors, strict=True))
        self.classes = classes

    @staticmethod
    def _pair(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        return first, nn.ReLU(), second, nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives scores (n, boxes, classes) after softmax and boxes (n, boxes, 4) for x: (n, 3, h, w)."""
        x = self.stem(x)
        scores: list[Tensor] = []
        boxes: list[Tensor] = []
        for level, score, box in zip(self.levels, self.scores, self.boxes, strict=True):
            x = level(x)
            for head, out, numbers in ((score, scores, self.classes), (box, boxes, 4)):
                flat = head(x).permute(0, 2, 3, 1).flatten(1)
                out.append(flat.view(flat.shape[0], -1, numbers))
        return torch.cat(scores, dim=1).softmax(dim=-1), torch.cat(boxes, dim=1)


def ssd(
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    extras: Sequence[int] = (512, 256, 256),
    classes: int = 21,
    anchors: Sequence[int] = (4, 6, 6, 4, 4),
) -> Ssd:
    """An SSD without BatchNorm, as the first one was."""
    return Ssd(widths, extras, classes, anchors)


class CenterNet(nn.Module):
    """Heat map, sizes and offsets over an upsampled trunk, and the `top` peaks of the heat map picked by TopK."""

    def __init__(self, trunk: Trunk, width: int, classes: int, top: int) -> None:
        super().__init__()
        self.trunk, self.top = trunk, top
        layers: list[nn.Module] = []
        for inputs in (trunk.widths[-1], width, width):
            layers += [nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.up = nn.Sequential(*layers)
        self.heat, self.sizes = self._head(width, classes), self._head(width, 4)

    @staticmethod
    def _head(width: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(conv_bn(width, width, 3), nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives scores (n, top) and sizes (n, top, 4) of the strongest peaks for x: (n, 3, h, w).

        Scores come without a sigmoid: over random weights it saturates, and rounding would choose the peaks.
        """
        features = self.up(self.trunk(x)[-1])
        heat, sizes = self.heat(features), self.sizes(features)
        highest = nn.functional.max_pool2d(heat, 3, 1, 1)
        peaks = (heat.relu() * (highest == heat).float()).flatten(1)
        scores, places = peaks.topk(self.top, dim=1)
        cells = sizes.shape[2] * sizes.shape[3]
        index = (places % cells).unsqueeze(1).expand(-1, 4, -1)
        return scores, sizes.flatten(2).gather(2, index).transpose(1, 2)


def centernet(
    *, depths: Sequence[int] = (2, 2, 2, 2), planes: int = 64, width: int = 256, classes: int = 80, top: int = 100
) -> CenterNet:
    """CenterNet over ResNet-18."""
    return CenterNet(Trunk(depths, planes=planes), width, classes, top)
