"""AlexNet in the one-tower form ("One weird trick for parallelizing convolutional neural networks")."""

from __future__ import annotations

from torch import nn


def alexnet(*, width: float = 1.0, hidden: int = 4096, classes: int = 1000) -> nn.Sequential:
    """AlexNet for 224x224 images; `width` scales the convolutions, `hidden` sizes the two wide linear layers."""
    a, b, c, d = (int(n * width) for n in (64, 192, 384, 256))
    features = nn.Sequential(
        *(nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2)),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(d * 36, hidden), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)),
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(6), nn.Flatten(1), classifier)
