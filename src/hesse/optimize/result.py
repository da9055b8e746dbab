# SPDX-License-Identifier: Apache-2.0
"""`OptimizeResult`: what a minimisation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from hesse.errors import Status
from hesse.result import Result
from hesse.vectors.space import Tree


@dataclass(frozen=True, repr=False)
class OptimizeResult(Result):
    """The result of a minimisation, with the fields of SciPy's OptimizeResult.

    `result["x"]` is `result.x`.
    """

    x: Tree
    """The best point, in the form of x0."""
    success: bool
    """Whether the gradient meets the tolerance and no negative curvature was found."""
    status: Status
    """Why the minimisation ended."""
    message: str
    """The same as a sentence."""
    fun: float
    """f(x)."""
    jac: Tree
    """grad f(x), in the form of x0."""
    nit: int
    """Iterations."""
    nfev: int
    """Evaluations of f."""
    njev: int
    """Evaluations of its gradient."""
    nhev: int
    """Products with its curvature, those of the certificate included."""
    min_curvature: float = math.nan
    """The smallest Ritz value of the Hessian at x, an upper bound on its smallest eigenvalue; NaN
    where the gradient is not small."""
    history: list[tuple[float, float]] = field(default_factory=list)
    """(f, |grad f|) at the start and after every iteration."""
