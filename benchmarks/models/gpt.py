"""A GPT written by hand: 4 layers of width 128, 4 heads, 16 sequences of 64 tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models.losses import TokenCrossEntropy
from benchmarks.models.seeded import integers, seeded
from benchmarks.problem import ModelAndLoss, Problem

VOCABULARY, WIDTH, HEADS, LAYERS, BATCH, TIME = 128, 128, 4, 4, 16, 64


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = self.qkv(x).view(batch, time, 3, self.heads, width // self.heads)
        heads = split.permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))


class Block(nn.Module):
    """Attention and a network of two layers, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Embeddings, blocks, a LayerNorm and logits."""

    def __init__(
        self, vocabulary: int = VOCABULARY, width: int = WIDTH, layers: int = LAYERS
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(TIME, width)
        self.blocks = nn.Sequential(*(Block(width, HEADS) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(self.tokens(tokens) + positions)))


def problem() -> Problem:
    """The next token of random sequences."""
    text = integers(VOCABULARY, BATCH, TIME + 1)
    parts = ModelAndLoss(seeded(GPT), TokenCrossEntropy(), text[:, :-1], text[:, 1:])
    return Problem.of("gpt", parts, fused="attention")
