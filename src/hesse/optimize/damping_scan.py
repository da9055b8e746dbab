# SPDX-License-Identifier: Apache-2.0
"""The damping chosen by the loss itself, among those whose steps one subspace gives."""

from __future__ import annotations

from collections.abc import Callable

from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Candidate, Proposal
from hesse.optimize.trust_radius import gain_ratio

_FACTOR = 4.0
"""Between neighbouring dampings of the scan."""
_ENOUGH = 1e-4
"""A step is accepted if f falls by this times its slope."""


class DampingScan:
    """Take the step of the smallest damping that lowers f nearly as much as the best.

    From the damping of the last step the scan goes down by factors of 4 as long as f falls further;
    else up, unless f falls nearly as the model says: a larger damping promises less. From the best
    it then goes on downwards while f falls by at least `share` of the best decrease: the step of a
    smaller damping also moves along directions of small curvature, whose gain comes in later steps.
    No dampings are tried above the bounds, where the step is rejected, nor such as leave negative
    curvature in the model.

    Args:
        damping: the first lambda.
        bounds: its range.
        share: of the best decrease, or of the one that the model predicts.
    """

    def __init__(
        self, damping: float, *, bounds: tuple[float, float] = (1e-6, 1e8), share: float = 0.85
    ) -> None:
        self.scalar, self.bounds, self.share = damping, bounds, share

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None; updates the damping."""
        scan = _Scan(objective, point, proposal)
        start = max(self.scalar, scan.least_damping)
        damping = self._lower(scan, start, lambda now, next_: next_ > now)
        if damping == start:
            damping = self._higher(scan, damping)
        best = scan.decrease(damping)
        if best > 0.0:
            damping = self._lower(scan, damping, lambda _, next_: next_ >= self.share * best)
        damping = self._first_usable(scan, damping)
        self.scalar = damping
        return scan.accepted(damping)

    def _first_usable(self, scan: _Scan, damping: float) -> float:
        """Upwards from a point that falls enough but has no finite gradient."""
        while scan.falls_enough(damping) and scan.accepted(damping) is None:
            if damping * _FACTOR > self.bounds[1]:
                break
            damping *= _FACTOR
        return damping

    def _lower(
        self, scan: _Scan, damping: float, is_better: Callable[[float, float], bool]
    ) -> float:
        """The last damping downwards of those each of which is better than the one before."""
        while damping / _FACTOR >= max(self.bounds[0], scan.least_damping):
            next_ = damping / _FACTOR
            if not is_better(scan.decrease(damping), scan.decrease(next_)):
                break
            damping = next_
        return damping

    def _higher(self, scan: _Scan, damping: float) -> float:
        """Upwards while f falls further, or not enough."""
        if scan.falls_enough(damping) and scan.gain_ratio(damping) >= self.share:
            return damping
        while damping * _FACTOR <= self.bounds[1]:
            next_ = damping * _FACTOR
            if scan.falls_enough(damping) and not scan.decrease(next_) > scan.decrease(damping):
                break
            damping = next_
        return damping


class _Scan:
    """The trial points of one proposal, each computed when first asked for."""

    def __init__(self, objective: Objective, point: Point, proposal: Proposal) -> None:
        self._objective, self._point, self._proposal = objective, point, proposal
        self.least_damping = proposal.least_damping
        self._known: dict[float, tuple[Candidate, Point]] = {}

    def decrease(self, damping: float) -> float:
        """By how much f falls; minus infinity where it is not finite."""
        return self._point.value - self._trial(damping)[1].value

    def gain_ratio(self, damping: float) -> float:
        """The decrease of f over that of the undamped model."""
        candidate, trial = self._trial(damping)
        return gain_ratio(self._point, trial, candidate)

    def falls_enough(self, damping: float) -> bool:
        """Whether the step descends, and f falls by a little of what the slope promises."""
        candidate, trial = self._trial(damping)
        point = self._point
        slope = point.space.inner(point.gradient, candidate.step)
        return slope < 0.0 and trial.value <= point.value + _ENOUGH * slope + point.rounding_error

    def accepted(self, damping: float) -> Point | None:
        """The point, if f falls enough there and its gradient is finite."""
        trial = self._trial(damping)[1]
        return trial if self.falls_enough(damping) and trial.is_usable else None

    def _trial(self, damping: float) -> tuple[Candidate, Point]:
        if damping not in self._known:
            at = self._proposal.at
            candidate = self._proposal.best if at is None else at(damping)
            trial = self._objective.point(self._point.x + candidate.step)
            self._known[damping] = candidate, trial
        return self._known[damping]
