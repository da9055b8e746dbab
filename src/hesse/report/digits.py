# SPDX-License-Identifier: Apache-2.0
"""The demonstration's data and network: real digits, and a deep autoencoder with a 2-D code."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

WIDTHS = (64, 128, 64, 32, 2, 32, 64, 128, 64)


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The 1,797 digits of scikit-learn: pixels in [0, 1], shape (1797, 64), and labels (1797,)."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16.0, dtype=dtype), torch.tensor(labels)


def autoencoder(seed: int) -> nn.Sequential:
    """64-128-64-32-2-32-64-128-64 with tanh units, a linear code and linear outputs.

    Weights N(0, 1 / fan-in), biases 0.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for depth, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=generator) / fan_in**0.5)
            linear.bias.zero_()
        layers.append(linear)
        if depth not in (3, 7):
            layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def code(model: nn.Sequential, pixels: Tensor) -> Tensor:
    """The 2-D code of every digit."""
    with torch.no_grad():
        return model[:7](pixels)


def reconstruction_loss(logits: Tensor, pixels: Tensor) -> Tensor:
    """Cross-entropy summed over pixels, mean over digits."""
    return binary_cross_entropy_with_logits(logits, pixels, reduction="sum") / len(pixels)


def reconstruction_error(model: nn.Module, pixels: Tensor) -> float:
    """Squared error summed over pixels, mean over digits."""
    with torch.no_grad():
        return float(((model(pixels).sigmoid() - pixels) ** 2).sum(dim=1).mean())
