"""Networks with one and with three spatial axes: a residual net over waveforms after "Very deep convolutional neural
networks for raw waveforms" (M34-res), and R3D-18 ("A closer look at spatiotemporal convolutions")."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Residual


def _conv(rank: int, inputs: int, outputs: int, kernel: int, stride: int, *, relu: bool) -> nn.Sequential:
    conv = nn.Conv1d if rank == 1 else nn.Conv3d
    norm = nn.BatchNorm1d if rank == 1 else nn.BatchNorm3d
    layers = [conv(inputs, outputs, kernel, stride, kernel // 2, bias=False), norm(outputs)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


def _block(rank: int, inputs: int, outputs: int, stride: int) -> Residual:
    branch = nn.Sequential(
        _conv(rank, inputs, outputs, 3, stride, relu=True), _conv(rank, outputs, outputs, 3, 1, relu=False)
    )
    plain = stride == 1 and inputs == outputs
    return Residual(branch, None if plain else _conv(rank, inputs, outputs, 1, stride, relu=False), nn.ReLU)


def _stages(rank: int, inputs: int, widths: Sequence[int], depths: Sequence[int]) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for i in range(depth):
            blocks.append(_block(rank, inputs, width, 2 if stage and not i else 1))
            inputs = width
    return blocks


def waveform(
    *, widths: Sequence[int] = (48, 96, 192, 384), depths: Sequence[int] = (3, 4, 6, 3), classes: int = 35
) -> nn.Sequential:
    """A residual net over one second of 8 kHz sound, (n, 1, 8000)."""
    stem = (nn.Conv1d(1, widths[0], 80, 4, 38, bias=False), nn.BatchNorm1d(widths[0]), nn.ReLU(), nn.MaxPool1d(4))
    head = (nn.AdaptiveAvgPool1d(1), nn.Flatten(1), nn.Linear(widths[-1], classes))
    return nn.Sequential(*stem, *_stages(1, widths[0], widths, depths), *head)


def r3d(
    *, widths: Sequence[int] = (64, 128, 256, 512), depths: Sequence[int] = (2, 2, 2, 2), classes: int = 400
) -> nn.Sequential:
    """R3D-18 over clips, (n, 3, frames, h, w)."""
    conv = nn.Conv3d(3, widths[0], (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    stem = (conv, nn.BatchNorm3d(widths[0]), nn.ReLU())
    head = (nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(widths[-1], classes))
    return nn.Sequential(*stem, *_stages(3, widths[0], widths, depths), *head)
