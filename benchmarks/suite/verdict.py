# SPDX-License-Identifier: Apache-2.0
"""Is the point where a solver ended a minimum? The dense Hessian there tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.testing import Problem

# A minimum: what the quadratic model can still gain, and the curvature that counts as negative.
_NEGLIGIBLE, _NEGATIVE = 1e-8, 1e-6
# Curvature that counts as zero, relative to the largest.
_FLAT = 1e-14


@dataclass(frozen=True)
class Verdict:
    """What the dense Hessian says of a point."""

    kind: str
    """"minimum", "saddle", "not stationary" or "not finite"."""
    value: float = math.nan
    gradient_norm: float = math.nan
    smallest: float = math.nan
    """Eigenvalue."""
    largest: float = math.nan
    """Eigenvalue, in absolute value."""


def verdict(problem: Problem, x: Tensor) -> Verdict:
    """Judge a point by value, gradient and all eigenvalues there.

    The model's gain g'H^-1 g / 2 must be at most 1e-8 of max(|f|, f(x0) - f), or the gradient at
    the level of rounding, and no eigenvalue below -1e-6 of the largest.
    """
    leaf = x.detach().clone().requires_grad_()
    value = problem.f(leaf)
    (g,) = torch.autograd.grad(value, leaf, create_graph=True)
    f, norm = float(value.detach()), float(g.detach().norm())
    if not (math.isfinite(f) and math.isfinite(norm)):
        return Verdict("not finite", f, norm)
    rows = [_row(g, leaf, i) for i in range(len(x))]
    H = torch.stack(rows)
    if not bool(torch.isfinite(H).all()):
        return Verdict("not finite", f, norm)
    values, vectors = torch.linalg.eigh(0.5 * (H + H.T))
    largest = float(values.abs().max())
    floor = max(_FLAT * largest, 1e-300)
    slopes = vectors.T @ g.detach()
    gain = float((slopes**2 / (2 * values.abs().clamp(min=floor))).sum())
    fallen = max(abs(f), float(problem.f(problem.x).detach()) - f)
    rounding = 100 * torch.finfo(x.dtype).eps * float((H.abs() @ x.abs()).norm())
    kind = "minimum"
    if gain > _NEGLIGIBLE * fallen and norm > rounding:
        kind = "not stationary"
    elif float(values[0]) < -_NEGATIVE * largest:
        kind = "saddle"
    return Verdict(kind, f, norm, float(values[0]), largest)


def _row(g: Tensor, leaf: Tensor, i: int) -> Tensor:
    if not g.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(g[i], leaf, retain_graph=True, materialize_grads=True)[0]
