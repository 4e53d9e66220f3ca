"""SqueezeNet 1.1 ("SqueezeNet", with the lighter stem of the authors' second release)."""

from __future__ import annotations

from torch import nn

from .blocks import Branches


def _fire(inputs: int, squeeze: int, expand: int) -> nn.Sequential:
    sides = Branches(
        nn.Sequential(nn.Conv2d(squeeze, expand, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()),
    )
    return nn.Sequential(nn.Conv2d(inputs, squeeze, 1), nn.ReLU(), sides)


def squeezenet(*, divide: int = 1, classes: int = 1000) -> nn.Sequential:
    """Eight fire modules; the classifier is a convolution."""

    def fire(inputs: int, squeeze: int, expand: int) -> nn.Sequential:
        return _fire(inputs // divide, squeeze // divide, expand // divide)

    def pool() -> nn.MaxPool2d:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        *(nn.Conv2d(3, 64 // divide, 3, 2), nn.ReLU(), pool()),
        *(fire(64, 16, 64), fire(128, 16, 64), pool()),
        *(fire(128, 32, 128), fire(256, 32, 128), pool()),
        *(fire(256, 48, 192), fire(384, 48, 192), fire(384, 64, 256), fire(512, 64, 256)),
        *(nn.Dropout(0.5), nn.Conv2d(512 // divide, classes, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    )
