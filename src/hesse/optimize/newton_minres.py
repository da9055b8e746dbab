# SPDX-License-Identifier: Apache-2.0
"""`NewtonMINRES`: Newton steps by MINRES, where the Hessian is singular or indefinite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hesse.errors import Status
from hesse.krylov.minres import MINRES
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.forcing import ForcingState
from hesse.optimize.method import IterativeMethod, Setting
from hesse.optimize.newton_system import newton_system
from hesse.optimize.point import Point, unit_for
from hesse.optimize.proposal import Candidate, LoopDescent, LoopSearch, Proposal
from hesse.optimize.truncated_newton import (
    along_gradient,
    along_negative_curvature,
    shortened,
)


@dataclass(frozen=True, repr=False)
class NewtonMINRES(IterativeMethod):
    r"""Newton steps by the method of minimum residuals, with a line search.

    $$ \lVert H p + g \rVert \le \eta \lVert g \rVert \quad\text{or}\quad
       \lVert H (H p + g) \rVert \ll \lVert H \rVert \lVert H p \rVert \quad\text{or}\quad
       p = -(H q + g) \text{ with } p^T H p \le 0 $$

    MINRES needs no positive definite matrix, and no solution to exist: where g is not in the range
    of H, the step is the one of least residual. It shows the curvature along every residual without
    a product; at the first one along which it is not positive, that residual is the step. All of
    these descend. Of the methods with a line search it is the one for singular Hessians.

    Args:
        max_inner_iterations: of one solve by MINRES.

    Cost: a product for each step of MINRES, a value for each length that is tried, and a gradient.
        About fourteen vectors.

    References: Liu & Roosta 2022, arXiv:2208.07095 (Newton-MR for nonconvex functions), and
        doi:10.1137/21M143666X (MINRES and negative curvature).

    >>> import hesse, torch
    >>> x = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> round(hesse.minimize(lambda x: (x.sum() - 1) ** 4 + x.sum(), x, NewtonMINRES()).fun, 6)
    0.52753
    """

    name: ClassVar[str] = "newton-minres"

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        return LeastResidual(setting, self.max_inner_iterations), ArmijoSearch()


class LeastResidual(LoopDescent):
    """The step of a truncated MINRES, or a residual along which H is not positive.

    Args:
        setting: of the minimisation.
        max_iterations: of one solve.
    """

    def __init__(self, setting: Setting, max_iterations: int = 500) -> None:
        self.state = ForcingState()
        self._setting, self._max_iterations = setting, max_iterations

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`."""
        if self.along_gradient:
            return Proposal(along_gradient(point))
        unit = unit_for(point.gradient_norm)
        system = newton_system(
            point,
            self._setting,
            rtol=self.state.tolerance(point.gradient_norm, self.gradient_tolerance),
            max_iterations=self._max_iterations,
            run=self._setting.limits(),
        )
        solution = MINRES(truncated=True).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        p, curvature = solution.direction, solution.curvature
        if p is not None and curvature is not None:
            candidate = along_negative_curvature(point, p, curvature / unit)
        else:
            candidate = shortened(point, Candidate(solution.x, solution.model_value / unit))
        return Proposal(candidate, status=solution.status)
