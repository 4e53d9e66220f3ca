"""Vision Transformer ("An image is worth 16x16 words") and MLP-Mixer ("MLP-Mixer: an all-MLP architecture")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Fused
from .blocks import Mlp


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), over tokens: (n, t, width)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention, self.mlp = Fused(width, heads), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, t, width)."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Patches(nn.Module):
    """Non-overlapping patches of an image as tokens: (n, (side / patch)**2, width)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """Gives the tokens of x: (n, 3, side, side)."""
        out: Tensor = self.embed(x).flatten(2).transpose(1, 2)
        return out


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, encoder blocks, and a linear head on the class token."""

    def __init__(self, *, side: int, patch: int, width: int, depth: int, heads: int, classes: int = 1000) -> None:
        super().__init__()
        self.patches = Patches(patch, width)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads, 4 * width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes) for x: (n, 3, side, side)."""
        tokens = self.patches(x)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions
        out: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return out


def vit(
    *, side: int = 224, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12, classes: int = 1000
) -> VisionTransformer:
    """ViT-B/16 by default."""
    return VisionTransformer(side=side, patch=patch, width=width, depth=depth, heads=heads, classes=classes)


class MixerBlock(nn.Module):
    """An MLP across the tokens, then one across the channels, each added to its input."""

    def __init__(self, tokens: int, width: int, across: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.tokens, self.channels = Mlp(tokens, across), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, tokens, width)."""
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.channels(self.norm2(x))
        return out


class Mixer(nn.Module):
    """Patches, mixer blocks, mean over the tokens, linear head."""

    def __init__(
        self, *, side: int, patch: int, width: int, depth: int, across: int, hidden: int, classes: int = 1000
    ) -> None:
        super().__init__()
        tokens = (side // patch) ** 2
        self.patches = Patches(patch, width)
        self.blocks = nn.Sequential(*(MixerBlock(tokens, width, across, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, classes) for x: (n, 3, side, side)."""
        out: Tensor = self.head(self.norm(self.blocks(self.patches(x))).mean(dim=1))
        return out


def mixer(
    *,
    side: int = 224,
    patch: int = 16,
    width: int = 512,
    depth: int = 8,
    across: int = 256,
    hidden: int = 2048,
    classes: int = 1000,
) -> Mixer:
    """Mixer-S/16 by default."""
    sizes = {"side": side, "patch": patch, "width": width, "depth": depth, "across": across, "hidden": hidden}
    return Mixer(**sizes, classes=classes)
