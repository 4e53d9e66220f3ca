"""ResNet, Wide ResNet and ResNeXt ("Deep residual learning", "Wide residual networks", "Aggregated residual
transformations"), and the trunk that detectors and segmenters are built on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Classifier, Residual, conv_bn


def basic(inputs: int, planes: int, stride: int = 1, dilation: int = 1) -> Residual:
    """Two 3x3 convolutions around which the input is added; gives `planes` channels."""
    branch = nn.Sequential(
        conv_bn(inputs, planes, 3, stride, dilation=dilation), conv_bn(planes, planes, 3, dilation=dilation, act=None)
    )
    return Residual(branch, _shortcut(inputs, planes, stride), nn.ReLU)


def bottleneck(
    inputs: int, planes: int, stride: int = 1, dilation: int = 1, *, groups: int = 1, base: int = 64
) -> Residual:
    """1x1, 3x3 (grouped: ResNeXt; wider by base / 64: Wide ResNet), 1x1; gives 4 * `planes` channels."""
    width = planes * base // 64 * groups
    branch = nn.Sequential(
        conv_bn(inputs, width),
        conv_bn(width, width, 3, stride, groups=groups, dilation=dilation),
        conv_bn(width, 4 * planes, act=None),
    )
    return Residual(branch, _shortcut(inputs, 4 * planes, stride), nn.ReLU)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    return conv_bn(inputs, outputs, 1, stride, act=None) if stride != 1 or inputs != outputs else None


class Trunk(nn.Module):
    """Stem and four stages; gives the maps of all four, strides 4, 8, 16 and 32 unless `dilated`.

    `dilated`: the last two stages keep stride 8 and dilate instead (DeepLab). `widths` are the stages' channels.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        planes: int = 64,
        deep: bool = False,
        groups: int = 1,
        base: int = 64,
        dilated: bool = False,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, planes, 7, 2), nn.MaxPool2d(3, 2, 1))
        self.widths = tuple(planes * 2**i * (4 if deep else 1) for i in range(4))
        stages, inputs, dilation = [], planes, 1
        for i, depth in enumerate(depths):
            stride = 2 if i else 1
            first_dilation = dilation
            if dilated and i >= 2:
                dilation, stride = 2 * dilation, 1
            blocks = []
            for j in range(depth):
                place = (inputs, planes * 2**i, 1 if j else stride, dilation if j else first_dilation)
                blocks.append(bottleneck(*place, groups=groups, base=base) if deep else basic(*place))
                inputs = self.widths[i]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Gives the four maps for x: (n, 3, h, w)."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class ResNet(nn.Module):
    """Trunk and classifier."""

    def __init__(self, trunk: Trunk, classes: int = 1000) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = Classifier(trunk.widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes) for x: (n, 3, h, w)."""
        out: Tensor = self.head(self.trunk(x)[-1])
        return out


def resnet(
    depths: Sequence[int],
    *,
    planes: int = 64,
    deep: bool = False,
    groups: int = 1,
    base: int = 64,
    classes: int = 1000,
) -> ResNet:
    """A ResNet of `depths` blocks per stage; `deep` takes bottlenecks."""
    return ResNet(Trunk(depths, planes=planes, deep=deep, groups=groups, base=base), classes)


class PreActivation(nn.Module):
    """BN, ReLU, conv, BN, ReLU, conv around the identity: the BatchNorm stands after the Add."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.open = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.branch = nn.Sequential(
            conv_bn(inputs, outputs, 3, stride), nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        )
        plain = stride == 1 and inputs == outputs
        self.shortcut = None if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gives the sum, not activated."""
        opened = self.open(x)
        branch: Tensor = self.branch(opened)
        return branch + (x if self.shortcut is None else self.shortcut(opened))


def wide_resnet(*, blocks: int = 4, widths: Sequence[int] = (160, 320, 640), classes: int = 10) -> nn.Sequential:
    """WRN-28-10 for 32x32 images: pre-activation blocks in three stages."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    inputs = 16
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(PreActivation(inputs, width, 2 if stage and not block else 1))
            inputs = width
    return nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(), Classifier(inputs, classes))
