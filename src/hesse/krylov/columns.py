# SPDX-License-Identifier: Apache-2.0
"""Blocks of right-hand sides for methods that take one at a time: column by column."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hesse.errors import Status
from hesse.krylov.solution import Solution
from hesse.krylov.system import System

_BREAK_OFF = {Status.INTERRUPTED, Status.STOPPED, Status.MAX_PRODUCTS, Status.MAX_SECONDS}


def solve_columns(solve_one: Callable[[System], Solution], system: System) -> Solution:
    """The solution for a vector b; for a block b, shape (m, k), those for its columns as one.

    If a limit, the callback or Ctrl-C ends a column, the next ones are not begun.
    """
    if system.b.ndim == 1:
        system.run.reserved = 1  # the product that verifies x
        return solve_one(system)
    solutions: list[Solution] = []
    run, earlier = system.run, system.run.before
    for j in range(system.b.shape[1]):
        if run.left() < 1:
            run.status = Status.MAX_PRODUCTS
            break
        solutions.append(solve_columns(solve_one, system.column(j)))
        run.before += solutions[-1].products
        if solutions[-1].status in _BREAK_OFF:
            break
    run.before = earlier
    return _joined(solutions, system)


def _joined(solutions: list[Solution], system: System) -> Solution:
    missing = range(len(solutions), system.b.shape[1])
    x0, unknown = system.x0, system.x0 is not None
    starts = [torch.zeros_like(solutions[0].x) if x0 is None else x0[:, j] for j in missing]
    norms = [s.residual_norm for s in solutions]
    norms += [math.nan if unknown else system.A.codomain.norm(system.b[:, j]) for j in missing]
    worst = max(solutions, key=lambda s: (not s.converged, s.status is not Status.CONVERGED))
    return Solution(
        x=torch.stack([*(s.x for s in solutions), *starts], dim=1),
        converged=not missing and all(s.converged for s in solutions),
        status=system.run.status if missing else worst.status,
        residual_norm=math.nan if missing and unknown else max(norms),
        products=sum(s.products for s in solutions),
        iterations=sum(s.iterations for s in solutions),
        history=[value for s in solutions for value in s.history],
        model_value=sum(s.model_value for s in solutions),
        direction=next((s.direction for s in solutions if s.direction is not None), None),
        residual_norms=torch.tensor(norms, dtype=torch.float64),
        method=worst.method,
    )
