"""Networks on which Torch-Pruning failed its users, rebuilt from what the issue threads describe (the numbers are
those of VainF/Torch-Pruning)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import Classifier, Residual, SqueezeExcite, conv_bn
from .mobilenet import inverted
from .yolo import C3


class ViewBeforeDeconvolution(nn.Module):
    """Issue 125: a linear layer's outputs viewed as a map of 48 channels, 16 outputs to each, then deconvolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Linear(19, 48 * 16)
        self.up1, self.up2 = nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.ConvTranspose2d(32, 24, 4, 2, 1)
        self.head = nn.Conv2d(24, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 3, 16, 16) for x: (n, 19)."""
        x = self.grow(x).relu().view(-1, 48, 4, 4)
        out: Tensor = self.head(self.up2(self.up1(x).relu()).relu())
        return out


class SingleChannel(nn.Module):
    """Issue 179: convolutions with one output channel and group 1, which are not depthwise: a gate, an output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 3), conv_bn(16, 40, 2, 2, padding=0))
        self.gate = nn.Sequential(conv_bn(40, 1, 3, act=None), nn.Sigmoid())
        self.tail = nn.Sequential(conv_bn(40, 24, 3), conv_bn(24, 1, 3, act=None))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 1, h / 2, w / 2)."""
        x = self.stem(x)
        out: Tensor = self.tail(x * self.gate(x))
        return out


def depthwise_chain() -> nn.Sequential:
    """Issue 328: MobileNetV3's blocks, whose depthwise convolutions must follow every change of width."""
    blocks = (
        inverted(16, 32, 16, 3, 1, act=nn.ReLU),
        inverted(16, 56, 24, 5, 2, act=nn.Hardswish, attention=SqueezeExcite(56, 16, gate=nn.Hardsigmoid)),
        inverted(24, 88, 24, 3, 1, act=nn.Hardswish, attention=SqueezeExcite(88, 24, gate=nn.Hardsigmoid)),
    )
    return nn.Sequential(conv_bn(3, 16, 3, 2, act=nn.Hardswish), *blocks, conv_bn(24, 64), Classifier(64, 7))


class Aggregation(nn.Module):
    """Issue 415: YOLOv9's stage: a chunk, stages with a concatenation inside chained on one half, everything
    concatenated again."""

    def __init__(self, inputs: int, split: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.open, self.close = conv_bn(inputs, split), conv_bn(split + 2 * inner, outputs)
        self.first = nn.Sequential(C3(split // 2, inner, 1, add=True), conv_bn(inner, inner, 3))
        self.second = nn.Sequential(C3(inner, inner, 1, add=True), conv_bn(inner, inner, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h, w)."""
        left, right = self.open(x).chunk(2, dim=1)
        first = self.first(right)
        out: Tensor = self.close(torch.cat([left, right, first, self.second(first)], dim=1))
        return out


class Down(nn.Module):
    """Issue 415: YOLOv9's halving: one half of the channels strided, the other max-pooled."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.strided, self.pooled = conv_bn(inputs // 2, outputs // 2, 3, 2), conv_bn(inputs // 2, outputs // 2)
        self.blur, self.pool = nn.AvgPool2d(2, 1), nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, outputs, h / 2, w / 2)."""
        left, right = self.blur(x).chunk(2, dim=1)
        return torch.cat([self.strided(left), self.pooled(self.pool(right))], dim=1)


class NestedConcat(nn.Module):
    """Issue 415: two aggregation stages, whose maps meet once more in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = conv_bn(3, 24, 3, 2), Aggregation(24, 32, 16, 40)
        self.down, self.second = Down(40, 48), Aggregation(48, 40, 24, 56)
        self.join, self.head = conv_bn(40 + 56, 32, 3), Classifier(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 7)."""
        fine = self.first(self.stem(x))
        coarse = nn.functional.interpolate(self.second(self.down(fine)), size=fine.shape[-2:], mode="nearest")
        out: Tensor = self.head(self.join(torch.cat([fine, coarse], dim=1)))
        return out


def flat_conv1d() -> nn.Sequential:
    """Issue 451: one-dimensional convolutions flattened before a linear layer."""
    first = (nn.Conv1d(2, 24, 5, padding=2), nn.BatchNorm1d(24), nn.ReLU(), nn.MaxPool1d(2))
    second = (nn.Conv1d(24, 40, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))
    return nn.Sequential(*first, *second, nn.Flatten(1), nn.Linear(40 * 13, 56), nn.ReLU(), nn.Linear(56, 7))


class WideAndDeep(nn.Module):
    """Issue 481: a linear and a deep branch concatenated: the branches are independent of each other."""

    def __init__(self) -> None:
        super().__init__()
        deep = (*self._layer(19, 40), *self._layer(40, 24), nn.Linear(24, 5))
        self.deep, self.wide, self.join = nn.Sequential(*deep), nn.Linear(19, 11), nn.Linear(16, 2)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
        return nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 2) for x: (n, 19)."""
        out: Tensor = self.join(torch.cat([self.wide(x), self.deep(x)], dim=-1))
        return out.sigmoid()


class DepthwiseResidual(nn.Module):
    """Issue 513: CMUNeXt's blocks: a residual around a depthwise convolution, with BatchNorm after the ReLU, inside an
    encoder and decoder with a concatenated skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shallow = conv_bn(3, 24, 3), self._block(24, 40)
        self.pool, self.deep = nn.MaxPool2d(2), self._block(40, 56)
        self.up = nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), conv_bn(56, 40, 3))
        self.join, self.head = conv_bn(80, 32, 3), nn.Conv2d(32, 2, 1)

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        wide = 4 * inputs
        return nn.Sequential(
            Residual(nn.Sequential(depthwise, nn.ReLU(), nn.BatchNorm2d(inputs))),
            *(nn.Conv2d(inputs, wide, 1), nn.ReLU(), nn.BatchNorm2d(wide)),
            *(nn.Conv2d(wide, inputs, 1), nn.ReLU(), nn.BatchNorm2d(inputs)),
            conv_bn(inputs, outputs, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 2, h, w)."""
        fine = self.shallow(self.stem(x))
        coarse = self.up(self.deep(self.pool(fine)))
        out: Tensor = self.head(self.join(torch.cat([fine, coarse], dim=1)))
        return out
