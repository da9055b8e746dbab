# SPDX-License-Identifier: Apache-2.0
"""Small matrices that structured operators are compared with."""

from __future__ import annotations

import torch

import hesse

DOUBLE = torch.float64
N = 8
I = hesse.identity_operator(N)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def definite(n: int = N, seed: int = 0) -> torch.Tensor:
    M = normal(n, n, seed=seed)
    return M @ M.T / n + 0.1 * torch.eye(n, dtype=DOUBLE)


def close(ours: torch.Tensor, theirs: torch.Tensor, rtol: float = 1e-10) -> None:
    assert ours.shape == theirs.shape
    assert float((ours.double() - theirs.double()).norm()) <= rtol * max(float(theirs.norm()), 1.0)


def factors(seed: int, r: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(N, r, seed=seed), torch.logspace(0.0, spread, r, dtype=DOUBLE)
