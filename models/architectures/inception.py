"""GoogLeNet ("Going deeper with convolutions", with BatchNorm and 3x3 for 5x5, as torchvision trains it) and
Inception-v3 ("Rethinking the Inception architecture"), both without the auxiliary heads."""

from __future__ import annotations

from functools import partial

from torch import nn

from .blocks import Branches, Classifier, conv_bn

_conv = partial(conv_bn, eps=1e-3)


def _mixed(inputs: int, a: int, b: int, c: int, d: int, e: int, f: int) -> Branches:
    pool = nn.MaxPool2d(3, 1, 1, ceil_mode=True)
    return Branches(
        _conv(inputs, a),
        nn.Sequential(_conv(inputs, b), _conv(b, c, 3)),
        nn.Sequential(_conv(inputs, d), _conv(d, e, 3)),
        nn.Sequential(pool, _conv(inputs, f)),
    )


_GOOGLENET = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet(*, divide: int = 1, classes: int = 1000) -> nn.Sequential:
    """GoogLeNet; every width divided by `divide`."""
    pools = (nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, 2, ceil_mode=True))
    stem, width = 64 // divide, 192 // divide
    layers: list[nn.Module] = [_conv(3, stem, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True)]
    layers += [_conv(stem, stem), _conv(stem, width, 3)]
    for pool, stage in zip(pools, _GOOGLENET, strict=True):
        layers.append(pool)
        for block in stage:
            a, b, c, d, e, f = (n // divide for n in block)
            layers.append(_mixed(width, a, b, c, d, e, f))
            width = a + c + e + f
    return nn.Sequential(*layers, Classifier(width, classes, dropout=0.2))


class _Inception3:
    """The five block kinds of Inception-v3, every width divided by `divide`."""

    def __init__(self, divide: int) -> None:
        self.divide = divide

    def conv(
        self, inputs: int, outputs: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, pad: bool = True
    ) -> nn.Sequential:
        """Convolution, BatchNorm, ReLU; `kernel` may be oblong."""
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2) if pad else (0, 0)
        conv = nn.Conv2d(inputs // self.divide, outputs // self.divide, kernel, stride, padding, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs // self.divide, eps=1e-3), nn.ReLU())

    def chain(self, inputs: int, *steps: tuple[int, tuple[int, int]], shrink: bool = False) -> nn.Sequential:
        """Convolutions of (width, kernel) in a row; with `shrink` the last has stride 2 and no padding."""
        layers = []
        for i, (outputs, kernel) in enumerate(steps):
            last = shrink and i == len(steps) - 1
            layers.append(self.conv(inputs, outputs, kernel, 2 if last else 1, pad=not last))
            inputs = outputs
        return nn.Sequential(*layers)

    def pool(self, inputs: int, outputs: int) -> nn.Sequential:
        """3x3 average pool, then 1x1."""
        return nn.Sequential(nn.AvgPool2d(3, 1, 1), self.conv(inputs, outputs))

    def a(self, inputs: int, pooled: int) -> Branches:
        """Branches 1x1, 5x5, double 3x3, pool."""
        return Branches(
            self.conv(inputs, 64),
            self.chain(inputs, (48, (1, 1)), (64, (5, 5))),
            self.chain(inputs, (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            self.pool(inputs, pooled),
        )

    def b(self, inputs: int) -> Branches:
        """Halves the map: 3x3, double 3x3, max pool."""
        return Branches(
            self.chain(inputs, (384, (3, 3)), shrink=True),
            self.chain(inputs, (64, (1, 1)), (96, (3, 3)), (96, (3, 3)), shrink=True),
            nn.MaxPool2d(3, 2),
        )

    def c(self, inputs: int, w: int) -> Branches:
        """Branches 1x1, 7x7 in two strips, 7x7 twice in four strips, pool."""
        return Branches(
            self.conv(inputs, 192),
            self.chain(inputs, (w, (1, 1)), (w, (1, 7)), (192, (7, 1))),
            self.chain(inputs, (w, (1, 1)), (w, (7, 1)), (w, (1, 7)), (w, (7, 1)), (192, (1, 7))),
            self.pool(inputs, 192),
        )

    def d(self, inputs: int) -> Branches:
        """Halves the map: 3x3, 7x7 strips and 3x3, max pool."""
        return Branches(
            self.chain(inputs, (192, (1, 1)), (320, (3, 3)), shrink=True),
            self.chain(inputs, (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, (3, 3)), shrink=True),
            nn.MaxPool2d(3, 2),
        )

    def e(self, inputs: int) -> Branches:
        """Branches that fan out once more into a 1x3 and a 3x1 strip."""

        def fan() -> Branches:
            return Branches(self.conv(384, 384, (1, 3)), self.conv(384, 384, (3, 1)))

        return Branches(
            self.conv(inputs, 320),
            nn.Sequential(self.conv(inputs, 384), fan()),
            nn.Sequential(self.chain(inputs, (448, (1, 1)), (384, (3, 3))), fan()),
            self.pool(inputs, 192),
        )


def inception_v3(*, divide: int = 1, classes: int = 1000) -> nn.Sequential:
    """Inception-v3 for 299x299 images."""
    make = _Inception3(divide)
    stem = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 32 // divide, 3, 2, bias=False), nn.BatchNorm2d(32 // divide, eps=1e-3), nn.ReLU()),
        make.conv(32, 32, (3, 3), pad=False),
        *(make.conv(32, 64, (3, 3)), nn.MaxPool2d(3, 2)),
        *(make.conv(64, 80), make.conv(80, 192, (3, 3), pad=False), nn.MaxPool2d(3, 2)),
    )
    early = nn.Sequential(make.a(192, 32), make.a(256, 64), make.a(288, 64), make.b(288))
    middle = nn.Sequential(*(make.c(768, w) for w in (128, 160, 160, 192)), make.d(768))
    return nn.Sequential(
        stem, early, middle, make.e(1280), make.e(2048), Classifier(2048 // divide, classes, dropout=0.5)
    )
