"""Dense prediction: U-Net ("U-Net", figure 1), FCN and DeepLabV3 over a dilated ResNet-50, with their auxiliary heads
("Fully convolutional networks", "Rethinking atrous convolution")."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .blocks import conv_bn
from .resnet import Trunk


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_bn(inputs, outputs, 3), conv_bn(outputs, outputs, 3))


class UNet(nn.Module):
    """Down by max pool, up by transposed convolution, each level's map concatenated across."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        inner = list(pairwise(widths))
        self.stem = _double(3, widths[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _double(a, b)) for a, b in inner)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(inner))
        self.join = nn.ModuleList(_double(2 * a, a) for a, _ in reversed(inner))
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes, h, w) for x: (n, 3, h, w)."""
        maps = [self.stem(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([maps.pop(), up(x)], dim=1))
        out: Tensor = self.head(x)
        return out


def unet(*, widths: Sequence[int] = (64, 128, 256, 512, 1024), classes: int = 2) -> UNet:
    """U-Net with BatchNorm and padded convolutions."""
    return UNet(widths, classes)


class Aspp(nn.Module):
    """A 1x1, three dilated 3x3 and a global mean side by side, concatenated and projected."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.near = nn.ModuleList([conv_bn(inputs, width), *(conv_bn(inputs, width, 3, dilation=r) for r in rates)])
        self.mean = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv_bn(inputs, width))
        self.project = nn.Sequential(conv_bn((len(rates) + 2) * width, width), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, width, h, w)."""
        mean = nn.functional.interpolate(self.mean(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        out: Tensor = self.project(torch.cat([*(branch(x) for branch in self.near), mean], dim=1))
        return out


def _fcn_head(inputs: int, classes: int) -> nn.Sequential:
    width = inputs // 4
    return nn.Sequential(conv_bn(inputs, width, 3), nn.Dropout(0.1), nn.Conv2d(width, classes, 1))


class Segmenter(nn.Module):
    """Dilated trunk, a head on its last map and an auxiliary one on the map before, both resized to the image."""

    def __init__(self, trunk: Trunk, head: nn.Module, auxiliary: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head, self.auxiliary = trunk, head, auxiliary

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Gives two maps of scores, (n, classes, h, w), for x: (n, 3, h, w)."""
        _, _, before, last = self.trunk(x)

        def resize(scores: Tensor) -> Tensor:
            return nn.functional.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)

        return resize(self.head(last)), resize(self.auxiliary(before))


def fcn(*, depths: Sequence[int] = (3, 4, 6, 3), planes: int = 64, classes: int = 21) -> Segmenter:
    """FCN over ResNet-50 by default."""
    trunk = Trunk(depths, planes=planes, deep=True, dilated=True)
    return Segmenter(trunk, _fcn_head(trunk.widths[3], classes), _fcn_head(trunk.widths[2], classes))


def deeplab_v3(
    *, depths: Sequence[int] = (3, 4, 6, 3), planes: int = 64, width: int = 256, classes: int = 21
) -> Segmenter:
    """DeepLabV3 over ResNet-50 by default."""
    trunk = Trunk(depths, planes=planes, deep=True, dilated=True)
    head = nn.Sequential(Aspp(trunk.widths[3], width), conv_bn(width, width, 3), nn.Conv2d(width, classes, 1))
    return Segmenter(trunk, head, _fcn_head(trunk.widths[2], classes))
