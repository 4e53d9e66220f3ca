"""Multi-head attention in the two spellings that exporters see most.

`Fused`: one projection to 3 * heads * d, cut apart by reshape and permute (ViT, Swin). `Separate`: one projection each
for queries, keys and values (BERT and its kin, encoder-decoder), multiplied by torch's own attention function.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fused(nn.Module):
    """softmax(q k' / sqrt(d) + bias) v over the tokens, with q, k and v from one linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Gives (n, t, c) for x: (n, t, c); `bias` is added to the scores, (…, heads, t, t)."""
        n, t, c = x.shape
        parts = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts[0], parts[1], parts[2]  # (n, heads, t, d)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(dim=-1) @ v
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, t, c))
        return out


class Separate(nn.Module):
    """Attention of `x` over `memory`, with a linear layer for each of q, k and v; `causal` hides what comes later."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Gives (n, t, c) for x: (n, t, c) and memory: (n, s, c)."""
        n, t, c = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(n, -1, self.heads, c // self.heads).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(memory)), split(self.v(memory))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(n, t, c))
        return out


def windows(x: Tensor, size: int) -> Tensor:
    """x: (n, h, w, c) cut into squares: (n * h/size * w/size, size * size, c)."""
    _, h, w, c = x.shape
    x = x.view(-1, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, size * size, c)


def unwindows(x: Tensor, size: int, h: int, w: int) -> Tensor:
    """The inverse of `windows`: (n, h, w, c)."""
    c = x.shape[-1]
    x = x.view(-1, h // size, w // size, size, size, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, h, w, c)


class RelativeBias(nn.Module):
    """A learned bias per head and relative position inside a square of `size` ("Swin Transformer", equation 4)."""

    index: Tensor

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.size = size
        self.table = nn.Parameter(0.2 * torch.randn((2 * size - 1) ** 2, heads))
        rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        place = torch.stack([rows.flatten(), columns.flatten()])  # (2, size**2)
        apart = place[:, :, None] - place[:, None, :] + size - 1
        self.register_buffer("index", (apart[0] * (2 * size - 1) + apart[1]).flatten(), persistent=False)

    def forward(self) -> Tensor:
        """Gives (heads, size**2, size**2)."""
        tokens = self.size**2
        return self.table[self.index].view(tokens, tokens, -1).permute(2, 0, 1).contiguous()
