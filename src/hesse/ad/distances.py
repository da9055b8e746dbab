# SPDX-License-Identifier: Apache-2.0
"""Distances between points, composed of operations that can be differentiated twice.

torch has the first derivative of `cdist` and `pdist` only. Where two points coincide a distance has
a first derivative by convention, 0, as in torch, and no second: it is NaN here, not 0, which would
be wrong for |x - y|^2. The distance of a point from itself is the constant 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# Above so many entries, the differences of all pairs of points take more memory than they are
# worth, and squared Euclidean distances are taken from a matrix product, as torch does.
_MANY = 1 << 24


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """The p-norm distances of the points x1 (..., P, M) from the points x2 (..., R, M)."""
    if x1.ndim < 2 or x2.ndim < 2 or not x1.shape[-1] == x2.shape[-1] > 0 or p <= 0.0:
        mode = compute_mode or "use_mm_for_euclid_dist_if_necessary"
        return torch.cdist(x1, x2, p, mode)  # an error, or no derivative that is not 0
    itself = None
    if x1 is x2:
        itself = torch.eye(x1.shape[-2], dtype=torch.bool, device=x1.device)
    if p == 2.0 and x1.numel() * x2.shape[-2] > _MANY:
        ones = torch.ones_like(x2[..., :1])
        squares = (x1 * x1).sum(-1, keepdim=True) @ ones.mT + (x2 * x2).sum(-1).unsqueeze(-2)
        rounding = torch.finfo(x1.dtype).eps * squares.detach()
        squares = squares - 2 * x1 @ x2.mT
        return _root(squares, 2.0, itself, rounding)
    differences = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return _norms(differences, p, itself)


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The p-norm distances of the rows of a matrix (N, M), of the N (N - 1) / 2 pairs i < j."""
    if input.ndim != 2 or input.shape[-1] == 0 or p <= 0.0:
        return torch.pdist(input, p)
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return _norms(input[i] - input[j], p)


def _norms(differences: Tensor, p: float, itself: Tensor | None = None) -> Tensor:
    """The p-norms of the last dimension, 0 at the pairs of a point with itself."""
    if p == 2.0:
        return _root((differences * differences).sum(-1), p, itself)
    if itself is not None:
        differences = differences.masked_fill(itself.unsqueeze(-1), 1.0)
    sizes = differences.abs()
    if math.isinf(p):
        return _root(sizes.amax(-1), 1.0, itself)
    return _root((sizes if p == 1.0 else sizes**p).sum(-1), p, itself)


def _root(
    powers: Tensor, p: float, itself: Tensor | None, rounding: Tensor | float = 0.0
) -> Tensor:
    """The p-th roots; where they are 0 the first derivative is 0 and the second NaN."""
    if itself is not None:
        powers = powers.masked_fill(itself, 1.0)
    zero = powers <= rounding
    positive = powers.masked_fill(zero, 1.0)
    roots = positive.sqrt() if p == 2.0 else positive ** (1.0 / p)
    # s^1.5 at s = 0: value and slope are 0, and the second derivative is infinite times 0.
    nothing = (powers - powers.detach()).masked_fill(~zero, 1.0)
    roots = torch.where(zero, nothing**1.5, roots)
    return roots if itself is None else roots.masked_fill(itself, 0.0)
