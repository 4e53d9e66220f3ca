"""Networks that make maps: ESPCN ("Real-time single image and video super-resolution using an efficient sub-pixel
convolutional neural network") and pose by deconvolution ("Simple baselines for human pose estimation")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .resnet import Trunk


def espcn(*, scale: int = 3, widths: Sequence[int] = (64, 32), channels: int = 1) -> nn.Sequential:
    """ESPCN: three convolutions and a pixel shuffle; gives (n, channels, scale * h, scale * w)."""
    a, b = widths
    return nn.Sequential(
        *(nn.Conv2d(channels, a, 5, padding=2), nn.Tanh(), nn.Conv2d(a, b, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(b, channels * scale**2, 3, padding=1), nn.PixelShuffle(scale), nn.Sigmoid()),
    )


class UpsamplingResidual(nn.Module):
    """Super-resolution with hidden pixel shuffles: residual blocks without BatchNorm, then shuffle stages that feed
    further convolutions (after "Enhanced deep residual networks for single image super-resolution")."""

    def __init__(self, width: int, depth: int, stages: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(depth)
        )
        stage = (nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2)) for _ in range(stages))
        self.up = nn.Sequential(*stage, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, 3, h * 2**stages, w * 2**stages) for x: (n, 3, h, w)."""
        start = self.stem(x)
        x = start
        for block in self.blocks:
            x = x + 0.1 * block(x)
        out: Tensor = self.up(x + start)
        return out


def edsr(*, width: int = 64, depth: int = 16, stages: int = 2) -> UpsamplingResidual:
    """EDSR-baseline for four times the size."""
    return UpsamplingResidual(width, depth, stages)


class Pose(nn.Module):
    """Trunk, three transposed convolutions with BatchNorm, one heat map per joint."""

    def __init__(self, trunk: Trunk, width: int, joints: int) -> None:
        super().__init__()
        self.trunk = trunk
        layers: list[nn.Module] = []
        for inputs in (trunk.widths[-1], width, width):
            layers += [nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Conv2d(width, joints, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, joints, h / 4, w / 4) for x: (n, 3, h, w)."""
        out: Tensor = self.head(self.trunk(x)[-1])
        return out


def pose(*, depths: Sequence[int] = (3, 4, 6, 3), planes: int = 64, width: int = 256, joints: int = 17) -> Pose:
    """Simple baseline over ResNet-50 by default."""
    return Pose(Trunk(depths, planes=planes, deep=True), width, joints)
