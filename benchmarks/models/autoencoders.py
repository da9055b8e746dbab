"""Autoencoders with tanh units, a linear code and linear outputs.

The deep one is Martens' and Hinton's for MNIST (784-1000-500-250-30 and back), the classical
problem of Hessian-free optimisation. Its images are synthetic unless real ones are given.
"""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models.losses import ReconstructionLoss
from benchmarks.models.seeded import normal
from benchmarks.problem import ModelAndLoss, Problem

DATA = "HESSE_BENCH_IMAGES"
"""Environment variable: an .npz file whose first array holds images of 784 pixels, one a row."""


def small() -> Problem:
    """64-100-50-25-6-25-50-100-64, batch 100."""
    widths = (64, 100, 50, 25, 6, 25, 50, 100, 64)
    return _problem("small-autoencoder", widths, synthetic_images(100, 64))


def deep() -> Problem:
    """784-1000-500-250-30-250-500-1000-784, batch 1000."""
    widths = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
    path = os.environ.get(DATA)
    images = real_images(path, 1000) if path else synthetic_images(1000, 784)
    return _problem("deep-autoencoder", widths, images)


def _problem(name: str, widths: tuple[int, ...], images: Tensor) -> Problem:
    parts = ModelAndLoss(autoencoder(widths), ReconstructionLoss(), images, images)
    return Problem.of(name, parts, jax="autoencoder")


def autoencoder(widths: tuple[int, ...]) -> nn.Sequential:
    """Weights N(0, 1 / fan-in), biases 0; no tanh on the code and on the outputs."""
    layers: list[nn.Module] = []
    for depth, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(normal(fan_out, fan_in, seed=depth) / fan_in**0.5)
            linear.bias.zero_()
        layers.append(linear)
        if depth not in (len(widths) // 2, len(widths) - 1):
            layers.append(nn.Tanh())
    return nn.Sequential(*layers).eval()


def synthetic_images(count: int, pixels: int, rank: int = 12) -> Tensor:
    """Images in (0, 1) with a latent dimension."""
    return torch.sigmoid(normal(count, rank, seed=1) @ normal(rank, pixels, seed=2))


def real_images(path: str, count: int) -> Tensor:
    """The first images of a file, scaled to [0, 1]."""
    with np.load(path) as archive:
        images = np.asarray(archive[archive.files[0]][:count], dtype=np.float32)
    return torch.from_numpy(images.reshape(len(images), -1) / max(1.0, images.max()))
