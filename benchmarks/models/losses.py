"""Losses that `torch.nn` does not have, as modules with a `reduction` like its own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class TokenCrossEntropy(nn.Module):
    """Cross-entropy of logits (batch, time, vocabulary), mean over all tokens."""

    reduction = "mean"

    def forward(self, logits: Tensor, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class ReconstructionLoss(nn.Module):
    """Cross-entropy of pixels in [0, 1], summed over pixels, mean over images."""

    reduction = "mean"

    def forward(self, logits: Tensor, pixels: Tensor) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
        return entropy / len(pixels)
