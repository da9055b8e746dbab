# SPDX-License-Identifier: Apache-2.0
"""`QuadraticModel`: the risk near the present weights, and its minimum for a given mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hesse.errors import OperatorError, Status
from hesse.krylov.multi_shift_cg import MultiShiftCG
from hesse.krylov.solution import Solution
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator


@dataclass
class QuadraticModel:
    r"""g'd + d'Ad / 2, the change of the risk when the weights w change by d.

    With a mask P of weights that become zero, d_P = -w_P, and the minimum over the others, K, is at

    $$ d_K = (A_{KK} + \mu I)^{-1} (A_{KP} w_P - g_K) $$

    Args:
        A: the curvature.
        w: the weights, (n,).
        g: the gradient, zero where it is neglected.
        diagonal: of A, zero where that is negative.
        rtol, most: of each system, its tolerance and its most iterations.
    """

    A: LinearOperator
    w: Tensor
    g: Tensor
    diagonal: Tensor
    rtol: float
    most: int | None
    products: int = 0
    _zero: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._zero = torch.zeros_like(self.w)

    def increase(self, w: Tensor, damping: float = 0.0) -> tuple[float, Tensor]:
        """The change of the model from self.w to w, and its gradient there, damping included."""
        d, space = w - self.w, self.A.domain
        Hd = self.A._matvec(d) + damping * d
        self.products += 1
        return space.inner(self.g, d) + 0.5 * space.inner(d, Hd), self.g + Hd

    def repaired(self, keep: Tensor, damping: float) -> Tensor:
        """The weights of the minimum with this mask (n,).

        Raises:
            OperatorError: the matrix is not positive definite.
        """
        solution = self._solved(keep, MultiShiftCG([damping]), damping)
        return self._with(keep, solution.x[:, 0])

    def all_repaired(self, keep: Tensor, dampings: Sequence[float]) -> list[Tensor]:
        """The same for several dampings, at the products of the least."""
        solution = self._solved(keep, MultiShiftCG(dampings), min(dampings))
        return [self._with(keep, x) for x in solution.x.T]

    @cached_property
    def dense(self) -> Tensor:
        """A as a matrix, in float64."""
        self.products += self.A.domain.n
        return self.A.to_dense().double()

    def removed(self, keep: Tensor) -> Tensor:
        """The weights without those of the mask, the others as they are."""
        return torch.where(keep, self.w, self._zero)

    def _solved(self, keep: Tensor, method: MultiShiftCG, least: float) -> Solution:
        solution = solve(
            *(self.A.restrict(keep), self._right(keep), method),
            rtol=self.rtol,
            max_iterations=self.most,
        )
        self.products += solution.products
        check_definite(solution, least)
        return solution

    def _right(self, keep: Tensor) -> Tensor:
        """A_KP w_P - g_K."""
        self.products += 1
        return (self.A._matvec(torch.where(keep, self._zero, self.w)) - self.g)[keep]

    def _with(self, keep: Tensor, change: Tensor) -> Tensor:
        w = self._zero.clone()
        w[keep] = self.w[keep] + change
        return w


def check_definite(solution: Solution, damping: float) -> None:
    """Raise at a direction of negative curvature, along which the model has no minimum."""
    if solution.status is Status.NEGATIVE_CURVATURE or solution.direction is not None:
        raise OperatorError(
            expected="A + mu I to be positive definite on the weights that are kept",
            got=f"a direction of negative or zero curvature (damping mu = {damping:g})",
            remedy="Use curvature='ggn', a larger damping, or damping=None to search for one.",
        )
