# SPDX-License-Identifier: Apache-2.0
"""The damping of Hessian-free optimisation, and how its steps are judged."""

from __future__ import annotations

from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.optimize.trust_radius import gain_ratio


class LevenbergMarquardt:
    """Go back over the CG iterates, then along the step; adapt the damping by the gain ratio.

    The search goes back from the last iterate while f falls, then does an Armijo search along the
    chosen one. With rho the decrease of f over that of the undamped model at the chosen iterate,

        lambda <- 3/2 lambda if rho < 1/4,    2/3 lambda if rho > 3/4,

    within `bounds`; a rejected step multiplies it by 4. The lower bound is needed: with rho near 1
    the damping would fall without end, and take as many steps to rise again.

    Source: Martens 2010, sections 4.1, 4.6; Martens & Sutskever 2012, section 8.
    """

    def __init__(
        self,
        damping: float,
        *,
        bounds: tuple[float, float] = (1e-10, 1e8),
        armijo: ArmijoSearch | None = None,
    ) -> None:
        self.scalar, self.bounds = damping, bounds
        self.armijo = armijo or ArmijoSearch(c=1e-2, factor=0.8, max_trials=60)

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None; updates the damping."""
        candidate, trial = self._backtracked(objective, point, proposal)
        rho = gain_ratio(point, trial, candidate)
        slope = point.space.inner(point.gradient, candidate.step)
        accepted = None
        if slope < 0.0:
            accepted = self.armijo.along(objective, point, candidate.step, slope, full=trial)
        if accepted is None:
            self._scale(4.0)
        elif rho < 0.25:
            self._scale(3 / 2)
        elif rho > 0.75:
            self._scale(2 / 3)
        return accepted

    def _backtracked(
        self, objective: Objective, point: Point, proposal: Proposal
    ) -> tuple[Candidate, Point]:
        """The last candidate that is better than the one before it, and the point it leads to."""
        best, trial = proposal.best, objective.point(point.x + proposal.best.step)
        for candidate in reversed(proposal.shorter):
            earlier = objective.point(point.x + candidate.step)
            if not earlier.value < trial.value:
                break
            best, trial = candidate, earlier
        return best, trial

    def _scale(self, factor: float) -> None:
        lower, upper = self.bounds
        self.scalar = min(max(self.scalar * factor, lower), upper)
