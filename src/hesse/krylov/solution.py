# SPDX-License-Identifier: Apache-2.0
"""What a linear solver returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hesse.errors import Status
from hesse.result import Result
from hesse.vectors.space import Tree


@dataclass
class Iterate:
    """An iterate that was kept: its number, x, and the quadratic model x'Ax/2 - b'x there."""

    iteration: int
    x: Any
    model_value: float


@dataclass(frozen=True, repr=False)
class Solution(Result):
    """The result of solving A x = b.

    `converged` is said of a residual that was recomputed from x, never of a recurrence.
    """

    x: Tree
    """The solution, or the best iterate so far; in the form of b."""
    converged: bool
    """Whether |b - A x| <= max(rtol |b|, atol), for every column of a block; of least squares,
    whether |A'(b - A x)| is small enough."""
    status: Status
    """Why the iteration ended; `status.value` is a sentence."""
    residual_norm: float
    """|b - A x|, recomputed (from the recurrence where the solver was told not to verify); the
    largest of the columns of a block."""
    products: int
    """Products with A and A', the ones that verify the residual included."""
    iterations: int
    """Steps taken."""
    history: list[float] = field(default_factory=list)
    """The residual norm before every step and after the last, by recurrence."""
    model_value: float = 0.0
    """x'Ax/2 - b'x, the quadratic that x minimises when A is positive definite."""
    direction: Tree | None = None
    """A direction p with p'Ap <= 0, if one was met."""
    iterates: list[Iterate] = field(default_factory=list)
    """The iterates that `keep` asked for, oldest first."""
    residual_norms: Tensor | None = None
    """The recomputed residual norm of every column of a block, shape (k,)."""
    method: str = "cg"
    """The method that found x: what "auto" chose."""
    curvature: float | None = None
    """p'Ap of the direction, where the method knows it."""
