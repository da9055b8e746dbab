# SPDX-License-Identifier: Apache-2.0
"""`Cubic`: Newton steps that a cubic term keeps short, adapted to how well the model predicts f."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hesse.krylov.secular import with_cubic
from hesse.operators.algebra import LinearOperator
from hesse.optimize.krylov_descent import KrylovDescent
from hesse.optimize.method import IterativeMethod, Setting
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import LoopDescent, LoopSearch, Proposal
from hesse.optimize.trust_radius import curvature_at, gain_ratio, scales_at

# A step is accepted if rho is above the first, and sigma falls if it is above the second.
_ACCEPTED, _GOOD = 1e-4, 0.9
_LEAST = 1e-200  # sigma


@dataclass(frozen=True, repr=False)
class Cubic(IterativeMethod):
    r"""Adaptive cubic regularisation: a quadratic model with a cubic term, by the Lanczos process.

    $$ \min_{s \in \mathcal{K}_j(H, g)} g^T s + \tfrac12 s^T H s
       + \tfrac{\sigma}{3} \lVert s \rVert^3 $$

    The term bounds what the quadratic model leaves out. sigma grows where f is above the model, to
    the value with which the model would have been right there, and falls where the model is good.
    The method needs at most O(eps^-3/2) steps to a gradient of size eps, the fewest of any method
    of second order. After a rejected step the basis serves again: no product.

    Args:
        max_inner_iterations: products of one step at most.

    Cost: as `TrustKrylov`, whose bounds of memory hold; but where the basis has no room for another
        vector the step is the best one on it.

    References: Cartis, Gould & Toint 2011, doi:10.1007/s10107-009-0286-5 and
        doi:10.1007/s10107-009-0337-y; Gould, Porcelli & Toint 2012, doi:10.1007/s10589-011-9446-7
        (how sigma is adapted).

    >>> import hesse, torch
    >>> x = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    >>> f = lambda x: x[0] ** 2 - x[1] ** 2 + x[1] ** 4
    >>> round(hesse.minimize(f, x, Cubic()).fun, 8)
    -0.25
    """

    name: ClassVar[str] = "cubic"

    def compose(self, setting: Setting) -> tuple[LoopDescent, LoopSearch]:
        descent = KrylovDescent(setting, with_cubic, self.max_inner_iterations, is_bounded=False)
        return descent, Regularisation(setting.preconditioner)


@dataclass
class RegularisationState:
    """sigma, and the Euclidean length of the last step."""

    sigma: float = 0.0
    length: float = math.inf


class Regularisation(LoopSearch):
    """The weight sigma of the cubic term.

    Where f is above the quadratic model by sigma' |s|^3 / 3, sigma' is the weight that the term
    should have had there. A step is accepted if f falls by more than 1e-4 of what the quadratic
    model predicts. If it is not, sigma becomes sigma', at least 2 sigma; if f falls by 0.9 of it,
    sigma', between sigma / 2 and sigma / 10. The first sigma takes the curvature to change by as
    much as itself over a length of max(1, |x|).
    """

    def __init__(self, preconditioner: LinearOperator | None = None) -> None:
        self.state = RegularisationState()
        self.preconditioner = preconditioner

    @property
    def scalar(self) -> float:
        """sigma."""
        return self.state.sigma

    def begin(self, point: Point, descent: LoopDescent) -> None:
        """The first sigma. At most one product."""
        scales, along = scales_at(point, self.preconditioner), abs(curvature_at(point, descent))
        curvature = along if 0.0 < along < math.inf else scales.slope / scales.longest
        self.state.sigma = max(curvature / scales.longest, _LEAST)

    def moved(self, point: Point, length: float, descent: LoopDescent) -> None:
        """Begin again: what was learnt far away says little."""
        self.begin(point, descent)
        self.state.length = math.inf

    def is_short(self, length: float) -> bool:
        """Whether the last step was not longer."""
        return self.state.length <= length

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The point at the end of the step if f falls enough there; updates sigma."""
        step, state = proposal.best, self.state
        state.length = point.space.norm(step.step)
        length = state.length if step.length is None else step.length
        if not (step.predicted < 0.0 and length > 0.0):
            state.sigma *= 2.0
            return None
        trial = objective.point(point.x + step.step)
        rho = gain_ratio(point, trial, step)
        needed = 3.0 * (trial.value - point.value - step.predicted) / length / length / length
        if rho > _ACCEPTED:
            if trial.is_usable:
                if rho > _GOOD:
                    state.sigma = max(
                        min(max(needed, 0.1 * state.sigma), 0.5 * state.sigma), _LEAST
                    )
                return trial
            needed = math.inf
        state.sigma = max(2.0 * state.sigma, self._raised(step.predicted, length, needed))
        return None

    @staticmethod
    def _raised(predicted: float, length: float, needed: float) -> float:
        """What makes the next step shorter; where f is not finite, it is a fourth as long."""
        shorter = 0.25 * length if math.isinf(needed) else 0.1 * length
        most = -2.0 * predicted / length / shorter**2
        return min(needed, most)
