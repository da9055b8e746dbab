# SPDX-License-Identifier: Apache-2.0
"""The damping of Hessian-free optimisation, and how its steps are judged."""

from __future__ import annotations

from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.optimize.trust_radius import agreement
from hesse.vectors.inner_products import dot


class LevenbergMarquardt:
    """Backtrack over the iterates of CG, then along the step; raise or lower the damping by rho.

    From the last iterate backwards while f falls; then an Armijo search on the one that was chosen.
    With rho the decrease of f over that of the undamped model at the chosen iterate,

        lambda <- 3/2 lambda if rho < 1/4,    2/3 lambda if rho > 3/4,

    within [least, most]; a rejected step raises it fourfold. A floor is needed: with rho near 1 the
    damping would otherwise fall without end, and then take as long to come back.

    Source: Martens 2010, sections 4.1, 4.6; Martens & Sutskever 2012, section 8.
    """

    def __init__(
        self,
        damping: float,
        *,
        least: float = 1e-10,
        most: float = 1e8,
        armijo: ArmijoSearch | None = None,
    ) -> None:
        self.scalar, self.least, self.most = damping, least, most
        self.armijo = armijo or ArmijoSearch(c=1e-2, factor=0.8, max_trials=60)

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None; updates the damping."""
        candidate, trial = self._backtracked(objective, point, proposal)
        rho = agreement(point, trial, candidate)
        slope = dot(point.gradient, candidate.step)
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
        """The latest candidate whose predecessor is no better, and the point it leads to."""
        best, trial = proposal.best, objective.point(point.x + proposal.best.step)
        for candidate in reversed(proposal.shorter):
            earlier = objective.point(point.x + candidate.step)
            if not earlier.value < trial.value:
                break
            best, trial = candidate, earlier
        return best, trial

    def _scale(self, factor: float) -> None:
        self.scalar = min(max(self.scalar * factor, self.least), self.most)
