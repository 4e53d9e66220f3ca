"""Swin Transformer ("Swin Transformer: hierarchical vision transformer using shifted windows") and a MaxViT stage
("MaxViT: multi-axis vision transformer", figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .attention import Fused, RelativeBias, unwindows, windows
from .blocks import Classifier, Mlp, SqueezeExcite, conv_bn
from .mobilenet import inverted


def _shift_mask(side: int, size: int, shift: int) -> Tensor:
    """(windows, 1, size**2, size**2): -100 between tokens that only the cyclic shift made neighbours, else 0."""
    region = torch.zeros(1, side, side, 1)
    edges = (slice(0, -size), slice(-size, -shift), slice(-shift, None))
    for i, rows in enumerate(edges):
        for j, columns in enumerate(edges):
            region[:, rows, columns] = 3 * i + j
    cut = windows(region, size)[..., 0]
    apart = cut[:, None, :] != cut[:, :, None]
    return (-100.0 * apart).unsqueeze(1)


class WindowAttention(nn.Module):
    """Attention inside squares of a (n, side, side, width) map, shifted cyclically by `shift`."""

    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, size: int, shift: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.shift = shift if side > size else 0
        self.attention, self.bias = Fused(width, heads), RelativeBias(size, heads)
        mask = _shift_mask(side, size, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, side, side, width)."""
        _, h, w, _ = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        cut = windows(x, self.size)
        bias = self.bias().unsqueeze(0)  # (1, heads, t, t)
        if self.mask is not None:
            bias = (bias + self.mask).repeat(cut.shape[0] // self.mask.shape[0], 1, 1, 1)
        x = unwindows(self.attention(cut, bias), self.size, h, w)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x


class Block(nn.Module):
    """x + window attention(norm(x)), then x + mlp(norm(x)), in channels-last."""

    def __init__(self, width: int, heads: int, side: int, size: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, side, size, shift)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, side, side, width)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Merge(nn.Module):
    """Four neighbouring tokens become one of twice the width, by strided slices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, h / 2, w / 2, 2 * width) for x: (n, h, w, width)."""
        quarters = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        out: Tensor = self.reduce(self.norm(torch.cat(quarters, dim=-1)))
        return out


class Swin(nn.Module):
    """Patches of 4x4, four stages of shifted-window blocks, mean, linear head."""

    def __init__(
        self, *, side: int, width: int, depths: Sequence[int], heads: Sequence[int], window: int, classes: int
    ) -> None:
        super().__init__()
        self.embed, self.embed_norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        layers: list[nn.Module] = []
        side //= 4
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            if stage:
                layers.append(Merge(width))
                side, width = side // 2, 2 * width
            layers += [Block(width, count, side, window, i % 2 * (window // 2)) for i in range(depth)]
        self.blocks = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes) for x: (n, 3, side, side)."""
        tokens = self.embed_norm(self.embed(x).permute(0, 2, 3, 1))
        out: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=(1, 2)))
        return out


def swin(
    *,
    side: int = 224,
    width: int = 96,
    depths: Sequence[int] = (2, 2, 6, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
    window: int = 7,
    classes: int = 1000,
) -> Swin:
    """Swin-T by default."""
    return Swin(side=side, width=width, depths=depths, heads=heads, window=window, classes=classes)


class AxisAttention(nn.Module):
    """Attention and MLP inside windows, or (`grid`) among the tokens that share a place in every window."""

    def __init__(self, width: int, heads: int, size: int, *, grid: bool) -> None:
        super().__init__()
        self.size, self.grid = size, grid
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.bias, self.mlp = Fused(width, heads), RelativeBias(size, heads), Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, width, h, w) for x: (n, width, h, w)."""
        x = x.permute(0, 2, 3, 1)
        _, h, w, c = x.shape
        s = self.size
        if self.grid:  # a grid of s x s: the same fold with the two factors of each side exchanged
            cut = x.view(-1, s, h // s, s, w // s, c).permute(0, 2, 4, 1, 3, 5).reshape(-1, s * s, c)
        else:
            cut = windows(x, s)
        cut = cut + self.attention(self.norm1(cut), self.bias().unsqueeze(0))
        cut = cut + self.mlp(self.norm2(cut))
        if self.grid:
            x = cut.view(-1, h // s, w // s, s, s, c).permute(0, 3, 1, 4, 2, 5).reshape(-1, h, w, c)
        else:
            x = unwindows(cut, s, h, w)
        return x.permute(0, 3, 1, 2)


def _maxvit_block(inputs: int, outputs: int, heads: int, stride: int, size: int) -> nn.Sequential:
    hidden = 4 * outputs
    attention = SqueezeExcite(hidden, outputs // 4, act=nn.SiLU)
    mbconv = inverted(inputs, hidden, outputs, 3, stride, act=nn.GELU, attention=attention)
    axes = (AxisAttention(outputs, heads, size, grid=grid) for grid in (False, True))
    return nn.Sequential(mbconv, *axes)


def maxvit(
    *,
    stem: int = 64,
    widths: Sequence[int] = (64, 128),
    heads: Sequence[int] = (2, 4),
    size: int = 7,
    classes: int = 1000,
) -> nn.Sequential:
    """The first two stages of MaxViT-T, two blocks each, for 224x224 images (sides a multiple of 8 * `size`)."""
    layers: list[nn.Module] = [conv_bn(3, stem, 3, 2, act=nn.GELU), nn.Conv2d(stem, stem, 3, padding=1)]
    inputs = stem
    for width, count in zip(widths, heads, strict=True):
        layers += [_maxvit_block(inputs, width, count, 2, size), _maxvit_block(width, width, count, 1, size)]
        inputs = width
    return nn.Sequential(*layers, Classifier(inputs, classes))
