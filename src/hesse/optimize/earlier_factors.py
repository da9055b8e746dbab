# SPDX-License-Identifier: Apache-2.0
"""Factors of the Hessian at an earlier point, which make conjugate gradients fast at the next."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.operators.algebra import LinearOperator
from hesse.optimize.forcing import ForcingState
from hesse.optimize.method import Setting
from hesse.optimize.newton_system import newton_system
from hesse.optimize.point import Point, unit_for
from hesse.optimize.proposal import Candidate

# Where there are fewer variables, a factorisation takes less time than some iterations.
_LARGE = 10_000
# Iterations that cost as much as a factorisation. On chains and grids it is 25 to 50.
_WORTH = 30
# One solve takes half as many at most; after it failed a quarter, and so on, down to these.
_MOST, _LEAST = _WORTH // 2, 3
# Steps are as accurate as this at least: the value and the gradient after them cost something too.
_ETA = 0.1


@dataclass
class FactorsState(ForcingState):
    """Where the factors were taken, and how much they may be used."""

    factored_x: Tensor | None = None
    """None while there are no factors."""
    iterations: int = 0
    """Of CG with these factors."""
    allowed: int = _MOST
    """Iterations of the next solve."""


class EarlierFactors:
    r"""Newton steps by conjugate gradients, preconditioned by factors from an earlier point.

    $$ H(x_j)^{-1} H(x_k)\, s = -H(x_j)^{-1} g_k, \qquad H(x_j) \succ 0, \quad j < k $$

    The factors are given up where CG met negative curvature, the radius, or its limit of
    iterations, and where all iterations with them have cost as much as new ones would. That is
    decided by counts, so that a run that is resumed takes the same steps. It makes the factors
    again, at the point where they were taken.

    Args:
        setting: of the minimisation.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._inverse: LinearOperator | None = None

    def keep(self, state: FactorsState, point: Point, inverse: LinearOperator | None) -> None:
        """Use these factors at the next points; None for a Hessian that is not definite."""
        is_of_use = inverse is not None and point.space.n >= _LARGE
        state.factored_x, state.iterations = point.x if is_of_use else None, 0
        self._inverse = inverse if is_of_use else None

    def drop(self, state: FactorsState) -> None:
        """The next step is to take factors of its own."""
        state.factored_x = self._inverse = None

    def step(
        self, state: FactorsState, point: Point, radius: float, gradient_tolerance: float
    ) -> Candidate | None:
        """The Newton step, if it is inside and the factors serve; else they are dropped."""
        tolerance = state.tolerance(point.gradient_norm, gradient_tolerance)
        if state.factored_x is None or state.iterations >= _WORTH:
            self.drop(state)
            return None
        with point.uncounted():  # the entries of H are known, here and where the factors were taken
            system = newton_system(
                point,
                replace(self._setting, preconditioner=self._factors(state.factored_x)),
                rtol=min(_ETA, tolerance),
                max_iterations=state.allowed,
                run=self._setting.limits(),
            )
            solution = CG(radius=radius, verify=False).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        state.iterations += solution.iterations
        if solution.status is not Status.TRUNCATED:
            state.allowed = max(state.allowed // 2, _LEAST)
            self.drop(state)
            return None
        state.allowed = _MOST
        return Candidate(solution.x, solution.model_value / unit_for(point.gradient_norm))

    def _factors(self, x: Tensor) -> LinearOperator:
        """Those taken at x; a run that was resumed takes them again."""
        if self._inverse is None:
            self._inverse = self._setting.curvature_at(x)._inverse()
        assert self._inverse is not None, "there were factors at this point"
        return self._inverse
