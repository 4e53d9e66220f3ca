"""Transformers over token ids: encoder-decoder ("Attention is all you need"), and networks whose weights are shared:
input and output embeddings tied, or one block applied again and again ("ALBERT")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import Separate
from .blocks import Mlp


class Encoder(nn.Module):
    """x = norm(x + attention(x)), x = norm(x + mlp(x)): the post-norm block of the first transformer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention, self.mlp = Separate(width, heads), Mlp(width, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Gives (n, t, width)."""
        x = self.norm1(x + self.attention(x, x))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out


class Decoder(nn.Module):
    """Causal attention over itself, attention over the encoder's tokens, MLP; each with a sum and a norm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.own, self.cross = Separate(width, heads, causal=True), Separate(width, heads)
        self.mlp = Mlp(width, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Gives (n, t, width) for x: (n, t, width) and memory: (n, s, width)."""
        x = self.norms[0](x + self.own(x, x))
        x = self.norms[1](x + self.cross(x, memory))
        out: Tensor = self.norms[2](x + self.mlp(x))
        return out


class Embedding(nn.Module):
    """Learned vectors of tokens and of positions, summed."""

    def __init__(self, vocabulary: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.2 * torch.randn(1, length, width))

    def forward(self, ids: Tensor) -> Tensor:
        """Gives (n, t, width) for ids: (n, t), t at most `length`."""
        out: Tensor = self.tokens(ids) + self.positions[:, : ids.shape[1]]
        return out


class EncoderDecoder(nn.Module):
    """Translation: scores of the next target token at every place. One embedding serves source, target and output."""

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embed = Embedding(vocabulary, length, width)
        self.encoder = nn.Sequential(*(Encoder(width, heads, hidden) for _ in range(depth)))
        self.decoder = nn.ModuleList(Decoder(width, heads, hidden) for _ in range(depth))
        self.scores = nn.Linear(width, vocabulary, bias=False)
        self.scores.weight = self.embed.tokens.weight

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Gives (n, t, vocabulary) for source: (n, s) and target: (n, t)."""
        memory, x = self.encoder(self.embed(source)), self.embed(target)
        for block in self.decoder:
            x = block(x, memory)
        out: Tensor = self.scores(x)
        return out


def encoder_decoder(
    *,
    vocabulary: int = 1000,
    length: int = 32,
    width: int = 256,
    depth: int = 3,
    heads: int = 8,
    hidden: int = 1024,
) -> EncoderDecoder:
    """A small translation transformer with tied embeddings."""
    sizes = {"vocabulary": vocabulary, "length": length, "width": width, "depth": depth, "heads": heads}
    return EncoderDecoder(**sizes, hidden=hidden)


class TiedLanguageModel(nn.Module):
    """Embedding, encoder blocks, and the same embedding as output matrix."""

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embed = Embedding(vocabulary, length, width)
        self.blocks = nn.Sequential(*(Encoder(width, heads, hidden) for _ in range(depth)))

    def forward(self, ids: Tensor) -> Tensor:
        """Gives (n, t, vocabulary) for ids: (n, t)."""
        return nn.functional.linear(self.blocks(self.embed(ids)), self.embed.tokens.weight)


def tied_language_model(
    *, vocabulary: int = 1000, length: int = 32, width: int = 128, depth: int = 2, heads: int = 4, hidden: int = 512
) -> TiedLanguageModel:
    """A language model whose largest weight is used twice."""
    sizes = {"vocabulary": vocabulary, "length": length, "width": width, "depth": depth, "heads": heads}
    return TiedLanguageModel(**sizes, hidden=hidden)


class SharedBlocks(nn.Module):
    """Classifier over tokens in which one block's weights serve every layer."""

    def __init__(self, *, vocabulary: int, length: int, width: int, times: int, heads: int, classes: int) -> None:
        super().__init__()
        self.embed, self.block = Embedding(vocabulary, length, width), Encoder(width, heads, 4 * width)
        self.times, self.head = times, nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Gives (n, classes) for ids: (n, t)."""
        x = self.embed(ids)
        for _ in range(self.times):
            x = self.block(x)
        out: Tensor = self.head(x.mean(dim=1))
        return out


def shared_blocks(
    *, vocabulary: int = 500, length: int = 24, width: int = 128, times: int = 4, heads: int = 4, classes: int = 10
) -> SharedBlocks:
    """One encoder block applied `times` times."""
    sizes = {"vocabulary": vocabulary, "length": length, "width": width, "times": times, "heads": heads}
    return SharedBlocks(**sizes, classes=classes)
