"""LSTM and GRU classifiers, and CRNN ("An end-to-end trainable neural network for image-based sequence
recognition")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """Recurrent layers over a sequence, and a linear head on their last step."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU], *, inputs: int, hidden: int, layers: int, classes: int) -> None:
        super().__init__()
        self.cells = cell(inputs, hidden, layers, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes) for x: (n, t, inputs)."""
        steps, _ = self.cells(x)
        out: Tensor = self.head(steps[:, -1])
        return out


def lstm(*, inputs: int = 40, hidden: int = 128, layers: int = 2, classes: int = 12) -> RecurrentClassifier:
    """An LSTM over, say, 40 audio features per step."""
    return RecurrentClassifier(nn.LSTM, inputs=inputs, hidden=hidden, layers=layers, classes=classes)


def gru(*, inputs: int = 40, hidden: int = 128, layers: int = 2, classes: int = 12) -> RecurrentClassifier:
    """The same with GRU."""
    return RecurrentClassifier(nn.GRU, inputs=inputs, hidden=hidden, layers=layers, classes=classes)


class Crnn(nn.Module):
    """VGG-like convolutions that flatten the height, two bidirectional LSTMs along the width, scores per step."""

    def __init__(self, widths: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        a, b, c, d = widths

        def conv(inputs: int, outputs: int, kernel: int = 3, *, norm: bool = False) -> list[nn.Module]:
            layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=1 if kernel == 3 else 0)]
            return [*layers, nn.BatchNorm2d(outputs), nn.ReLU()] if norm else [*layers, nn.ReLU()]

        def tall() -> nn.MaxPool2d:
            return nn.MaxPool2d((2, 2), (2, 1), (0, 1))

        self.features = nn.Sequential(
            *(*conv(1, a), nn.MaxPool2d(2), *conv(a, b), nn.MaxPool2d(2)),
            *(*conv(b, c, norm=True), *conv(c, c), tall()),
            *(*conv(c, d, norm=True), *conv(d, d), tall(), *conv(d, d, 2, norm=True)),
        )
        self.first = nn.LSTM(d, hidden, bidirectional=True, batch_first=True)
        self.between = nn.Linear(2 * hidden, hidden)
        self.second = nn.LSTM(hidden, hidden, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, steps, classes) for x: (n, 1, 32, w)."""
        columns = self.features(x).squeeze(2).transpose(1, 2)  # (n, steps, d)
        middle = self.between(self.first(columns)[0])
        out: Tensor = self.head(self.second(middle)[0])
        return out


def crnn(*, widths: Sequence[int] = (64, 128, 256, 512), hidden: int = 256, classes: int = 37) -> Crnn:
    """CRNN for 32-pixel-high text lines."""
    return Crnn(widths, hidden, classes)
