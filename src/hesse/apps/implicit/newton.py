# SPDX-License-Identifier: Apache-2.0
"""Newton's method for F(x) = 0 with GMRES inside, as roots and fixed points are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import NonFiniteError, Status
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

_MAX_STEPS = 100
_MAX_HALVINGS = 30
_MAX_INNER = 500  # iterations of GMRES
_INNER_RTOL = 1e-2
# |F(x)| is small when it is this fraction of |F(x0)|, or of |x|: an exponent of eps.
_SMALL = 0.75


@dataclass(frozen=True)
class Found:
    """A point, |F| there, and how the search ended."""

    x: Tensor
    residual: float
    status: Status


def find_root(
    F: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], LinearOperator],
    x: Tensor,
    space: Space,
) -> Found:
    r"""x with F(x) = 0 by an inexact Newton method with backtracking on |F|.

    $$ |F(x) + J p| \le 10^{-2} |F(x)|, \qquad |F(x + t p)| \le (1 - 10^{-4} t) |F(x)| $$

    References: Dembo, Eisenstat & Steihaug 1982, doi:10.1137/0719025.
    """
    residual = F(x)
    size = space.norm(residual)
    if not space.all_finite(residual):
        raise NonFiniteError(
            expected="a finite F(x0, l)", got="NaN or Inf", remedy="Start at another x0."
        )
    small = torch.finfo(x.dtype).eps ** _SMALL
    target = small * max(size, 1e-3 * space.norm(x))
    for _ in range(_MAX_STEPS):
        if size <= target:
            # One step more: the last residual is quadratically small, its error is not known.
            return _polished(F, jacobian, x, residual, size, space)
        J = jacobian(x)
        p = solve(J, -residual, "gmres", rtol=_INNER_RTOL, max_iterations=_MAX_INNER).x
        step = _shortened(F, x, p, size, space)
        if step is None:
            return Found(x, size, Status.STAGNATED)
        x, residual, size = step
    return Found(x, size, Status.MAX_ITERATIONS)


def _shortened(
    F: Callable[[Tensor], Tensor], x: Tensor, p: Tensor, size: float, space: Space
) -> tuple[Tensor, Tensor, float] | None:
    """x + t p for the first t in 1, 1/2, ... at which |F| is smaller."""
    t = 1.0
    for _ in range(_MAX_HALVINGS):
        residual = F(x + t * p)
        trial = space.norm(residual)
        if space.all_finite(residual) and trial <= (1 - 1e-4 * t) * size:
            return x + t * p, residual, trial
        t /= 2
    return None


def _polished(
    F: Callable[[Tensor], Tensor],
    jacobian: Callable[[Tensor], LinearOperator],
    x: Tensor,
    residual: Tensor,
    size: float,
    space: Space,
) -> Found:
    if size == 0.0:
        return Found(x, size, Status.CONVERGED)
    p = solve(jacobian(x), -residual, "gmres", rtol=_INNER_RTOL, max_iterations=_MAX_INNER).x
    better = _shortened(F, x, p, size, space)
    x, size = (x, size) if better is None else (better[0], better[2])
    return Found(x, size, Status.CONVERGED)
