"""VGG with BatchNorm ("Very deep convolutional networks for large-scale image recognition", configurations A and D)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

_DEPTHS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}


def vgg(
    depth: int,
    *,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    pooled: int = 7,
    hidden: int = 4096,
    classes: int = 1000,
) -> nn.Sequential:
    """VGG11 or VGG16, convolutions with bias and BatchNorm, for images of 32 * `pooled` pixels."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, width in zip(_DEPTHS[depth], widths, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(
        *(nn.Linear(inputs * pooled**2, hidden), nn.ReLU(), nn.Dropout()),
        *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)),
    )
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(pooled), nn.Flatten(1), classifier)
