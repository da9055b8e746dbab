# SPDX-License-Identifier: Apache-2.0
"""Bratu's problem, a minimal surface over a curved frame, and a chain with two wells a link."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.sparse.functions import Function, bratu


def bratu_from_zero(n: int) -> Function:
    """The energy of Bratu's problem on a square grid, lambda = 6.8, from u = 0."""
    f, x = bratu(n)
    return Function(f, torch.zeros_like(x))


def surface(n: int) -> Function:
    """The least area over a square grid whose frame is sin(2 pi x) below and above; from zero."""
    side = round(n**0.5)
    frame = torch.zeros(side + 2, side + 2, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * torch.linspace(0, 1, side + 2, dtype=torch.float64))
    frame[0], frame[-1] = wave, -wave

    def f(u: Tensor) -> Tensor:
        g = F.pad(u.view(side, side), (1, 1, 1, 1)) + frame
        a, b = g[1:, 1:] - g[:-1, :-1], g[1:, :-1] - g[:-1, 1:]
        return torch.sqrt(1 + (side + 1) ** 2 * (a * a + b * b) / 2).sum() / (side + 1) ** 2

    return Function(f, torch.zeros(side**2, dtype=torch.float64))


def two_wells(n: int) -> Function:
    """A chain of quartic wells at -1 and 1, coupled by springs: nonconvex near a random start."""
    coupling = 4.0

    def f(x: Tensor) -> Tensor:
        wells = 0.25 * ((x * x - 1.0) ** 2).sum()
        return wells + 0.5 * coupling * ((x[1:] - x[:-1]) ** 2).sum()

    generator = torch.Generator().manual_seed(0)
    return Function(f, torch.rand(n, dtype=torch.float64, generator=generator) - 0.3)


FUNCTIONS: dict[str, Callable[[int], Function]] = {
    "bratu": bratu_from_zero,
    "surface": surface,
    "chain": two_wells,
}
"""name -> n -> the function and its start."""
