# SPDX-License-Identifier: Apache-2.0
"""The truncated Newton step, and the methods `NewtonCG` and `TrustCG` that take it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hesse.errors import Status
from hesse.krylov.cg import CG
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.forcing import ForcingState
from hesse.optimize.method import IterativeMethod, Setting
from hesse.optimize.newton_system import newton_system
from hesse.optimize.point import LONGEST, Point, unit_for
from hesse.optimize.projected_descent import ProjectedDescent
from hesse.optimize.proposal import Candidate, LoopDescent, LoopSearch, Proposal
from hesse.optimize.trust_radius import TrustRadius


@dataclass(frozen=True, repr=False)
class NewtonCG(IterativeMethod):
    r"""Truncated Newton steps by conjugate gradients, with a line search.

    $$ \lVert H p + g \rVert \le \eta \lVert g \rVert, \qquad x_{k+1} = x_k + t p $$

    Args:
        max_inner_iterations: of one solve by CG.

    Cost: a product for each step of CG, a value for each length that is tried, and a gradient.
        About ten vectors.

    References: Nocedal & Wright 2006, algorithm 7.1; Eisenstat & Walker 1996,
        doi:10.1137/0917003.

    >>> import hesse, torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> hesse.minimize(lambda x: (x - 1).square().sum(), x, NewtonCG()).x
    tensor([1., 1.], dtype=torch.float64)
    """

    name: ClassVar[str] = "newton-cg"

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        return TruncatedNewton(setting, self.max_inner_iterations), ArmijoSearch()


@dataclass(frozen=True, repr=False)
class TrustCG(IterativeMethod):
    r"""Truncated Newton steps within a trust radius: Steihaug's method.

    $$ \min_p\; g^T p + \tfrac12 p^T H p, \qquad \lVert p \rVert \le \Delta $$

    CG stops on the boundary, or goes there along a direction of negative curvature. Within bounds
    on x the steps are those of TRON: the generalised Cauchy point, CG on the variables that are
    inside there, and a projected search, which changes many of the variables at bounds at once.

    Args:
        max_inner_iterations: of one solve by CG.

    Cost: a product for each step of CG, one value, and a gradient where the step is accepted; about
        ten vectors. With bounds some four products a step more, and fifteen vectors.

    References: Steihaug 1983, doi:10.1137/0720042; Nocedal & Wright 2006, algorithms 4.1 and 7.2;
        Lin & Moré 1999, doi:10.1137/S1052623498345075 (bounds).

    >>> import hesse, torch
    >>> x = torch.zeros(2, dtype=torch.float64)
    >>> hesse.minimize(lambda x: (x - 1).square().sum(), x, TrustCG()).x
    tensor([1., 1.], dtype=torch.float64)
    """

    name: ClassVar[str] = "trust-cg"

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        if setting.box is not None:
            descent = ProjectedDescent(setting, setting.box, self.max_inner_iterations)
            return descent, TrustRadius()
        return TruncatedNewton(setting, self.max_inner_iterations), TrustRadius()

    @property
    def takes_bounds(self) -> bool:
        """Yes."""
        return True


class TruncatedNewton(LoopDescent):
    r"""p with |H p + g| <= eta |g| by conjugate gradients, within a radius if there is one.

    The forcing term eta is that of `EisenstatWalker`, but no tighter than the tolerance of the
    minimisation needs. On a direction of negative curvature the step is the iterate before it,
    or, when there is none, the direction itself (Nocedal & Wright 2006, algorithm 7.1); within a
    radius it goes on to the boundary (algorithm 7.2). Steps longer than LONGEST max(1, |x|), as
    where f is flat to rounding, are cut. An H whose structure gives its inverse is solved with
    directly, without a radius.

    Args:
        setting: of the minimisation.
        max_iterations: of one solve.
    """

    def __init__(self, setting: Setting, max_iterations: int = 500) -> None:
        self.state = ForcingState()
        self._setting, self._max_iterations = setting, max_iterations

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point` within the radius `scalar`."""
        if self.along_gradient:
            return Proposal(along_gradient(point))
        if math.isinf(scalar) and (candidate := _direct(point)) is not None:
            return Proposal(shortened(point, candidate))
        unit = unit_for(point.gradient_norm)
        system = newton_system(
            point,
            self._setting,
            rtol=self.state.tolerance(point.gradient_norm, self.gradient_tolerance),
            max_iterations=self._max_iterations,
            run=self._setting.limits(),
        )
        solution = CG(radius=scalar, verify=False).solve_system(system)
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        if solution.iterations == 0 and solution.direction is not None:
            p = solution.direction
            candidate = along_negative_curvature(point, p, point.curvature._curvature(p))
        else:
            candidate = shortened(point, Candidate(solution.x, solution.model_value / unit))
        inside = math.isinf(scalar) or point.space.norm(candidate.step) < 0.99 * scalar
        return Proposal(candidate, status=solution.status, on_boundary=not inside)


def _direct(point: Point) -> Candidate | None:
    """-H^-1 g where the structure of H gives its inverse, if that descends."""
    A = point.curvature
    inverse = A._inverse() if A.is_structured else None
    if inverse is None:
        return None
    step = -inverse._matvec(point.gradient)
    slope = point.space.inner(point.gradient, step)
    return Candidate(step, slope / 2) if slope < 0.0 else None


def shortened(point: Point, candidate: Candidate) -> Candidate:
    """The step, cut where it is longer than a search would go back over."""
    length = point.space.norm(candidate.step)
    longest = LONGEST * max(1.0, point.space.norm(point.x))
    if not length > longest:
        return candidate
    t, slope = longest / length, point.space.inner(point.gradient, candidate.step)
    return Candidate(t * candidate.step, t * slope * (1 - t / 2))  # p'Hp = -g'p of an iterate


def along_gradient(point: Point) -> Candidate:
    """A step along the gradient, as long as x."""
    t = max(1.0, point.space.norm(point.x)) / point.gradient_norm
    return Candidate(-t * point.projected_gradient, -t * point.gradient_norm * point.gradient_norm)


def along_negative_curvature(point: Point, p: Tensor, curvature: float) -> Candidate:
    """A step along p with p'Hp <= 0, of the length that Newton's has for curvature |p'Hp|."""
    space, slope = point.space, point.space.inner(point.gradient, p)
    length = abs(slope) / abs(curvature) if curvature != 0.0 else math.inf
    length = min(length, max(1.0, space.norm(point.x)) / space.norm(p))
    return Candidate(length * p, length * slope + 0.5 * length**2 * curvature)
