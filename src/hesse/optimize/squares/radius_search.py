# SPDX-License-Identifier: Apache-2.0
"""The trust radius, picked by the true cost: several steps are tried from one factorisation.

A step costs one evaluation of r, a factorisation a Jacobian. Where the model is good the radius
grows as long as the cost falls; where it is bad the radius shrinks. By the rule `LONG` the longest
step is taken for which the cost falls by a part of what the model says, though a shorter one may
lower it more: short steps lead into narrow valleys, along which the next ones are short as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.optimize.box import Box
from hesse.optimize.squares.newton_family import NewtonFamily
from hesse.optimize.squares.residual_point import ResidualPoint, Residuals
from hesse.optimize.squares.sketched_family import SketchedFamily
from hesse.optimize.squares.step_family import Step, StepFamily

# With a lower gain ratio there is no step.
_LEAST = 1e-4
_MAX_TRIALS = 300
# The length of a second step relative to the first: shorter ones do not pay, longer ones are wrong.
_LEAST_BEND, _MOST_BEND = 1e-3, 0.75


@dataclass(frozen=True)
class Rule:
    """How the radius is searched.

    Args:
        enough: a step is good if its gain ratio is above this one.
        bad: below this one the next search begins within the radius.
        sure: above this one the next search begins beyond the radius.
        grow, shrink: factors of the radius from trial to trial.
        growths: trials beyond a good step.
        lowest: whether a longer step must lower the cost further, and is tried only where the gain
            ratio is sure; it may lead to another minimum.
    """

    enough: float
    bad: float
    sure: float
    grow: float
    shrink: float
    growths: int
    lowest: bool


CAREFUL = Rule(enough=_LEAST, bad=0.25, sure=0.75, grow=2.0, shrink=0.25, growths=2, lowest=True)
"""Few evaluations of r, and the minimum nearby."""
LONG = Rule(enough=0.15, bad=0.15, sure=0.15, grow=3.0, shrink=0.82, growths=1, lowest=False)
"""Every search begins far beyond the last radius and comes back in small steps, since radii that
are good may lie beyond others that are not."""


@dataclass(frozen=True)
class Trial:
    """A step that was tried."""

    point: ResidualPoint
    step: Tensor
    """In the variables."""
    length: float
    """In scaled variables."""
    radius: float
    predicted: float
    actual: float
    ratio: float
    is_limited: bool
    promised: float
    """The decrease that the model promised before the step was projected."""


@dataclass(frozen=True)
class LinearModel:
    """What is known at a point: scaled steps by one factorisation, and the way into the box.

    Args:
        point: where the model is made.
        family: its steps, in scaled variables.
        scale: D, with x = D y.
        held: the variables that stay at a bound.
        push: a step in the variables -> the weighted Jacobian times it.
    """

    point: ResidualPoint
    family: StepFamily | SketchedFamily | NewtonFamily
    scale: Tensor
    held: Tensor | None
    push: Callable[[Tensor], Tensor]

    def in_variables(self, scaled: Tensor) -> Tensor:
        """A step in the variables: zero, without rounding, for those that are held."""
        step = self.scale * scaled
        return step if self.held is None else torch.where(self.held, torch.zeros_like(step), step)

    def decrease(self, step: Tensor, residuals: Residuals) -> float:
        """What the model says of a step in the variables: -g'p - |J p|^2 / 2."""
        along = self.push(step)
        slope = residuals.space.inner(self.point.gradient, step)
        return -slope - 0.5 * residuals.codomain.inner(along, along)


class RadiusSearch:
    """Picks the radius for one model after the other.

    Args:
        residuals: the function.
        box: the bounds.
        radius: the first one, in scaled variables.
        rule: how it is searched.
    """

    def __init__(
        self, residuals: Residuals, box: Box | None, radius: float, rule: Rule = CAREFUL
    ) -> None:
        self._residuals, self._box, self.radius, self._rule = residuals, box, radius, rule

    def search(self, model: LinearModel) -> Trial | None:
        """The best step that was tried, by the rule; None if no length brings the cost down."""
        best = self._first(model)
        if best is None:
            return None
        best = self._longer(model, best)
        self.radius = self._next_radius(best)
        return best

    def _first(self, model: LinearModel) -> Trial | None:
        """The first step that is good enough to move along, as the radius shrinks."""
        smallest = torch.finfo(model.scale.dtype).eps ** 2 * self.radius
        spare = None
        for _ in range(_MAX_TRIALS):
            trial = self._trial(model, self.radius)
            if trial.ratio > self._rule.enough and trial.point.is_usable:
                return trial
            if spare is not None and trial.point.cost >= spare.point.cost:
                return spare
            if trial.ratio > _LEAST and trial.point.is_usable:
                spare = trial
            self.radius = self._rule.shrink * min(self.radius, trial.length or self.radius)
            if self.radius < smallest or trial.promised <= model.point.rounding_error:
                return spare
        return spare

    def _longer(self, model: LinearModel, best: Trial) -> Trial:
        """A longer step, as long as it is good enough."""
        rule = self._rule
        for _ in range(rule.growths):
            if not best.is_limited or (rule.lowest and best.ratio <= rule.sure):
                return best
            trial = self._trial(model, rule.grow * best.radius)
            is_lower = trial.point.cost < best.point.cost or not rule.lowest
            if not (is_lower and trial.ratio > rule.enough and trial.point.is_usable):
                return best
            best = trial
        return best

    def _trial(self, model: LinearModel, radius: float) -> Trial:
        """The step within a radius, bent along the curvature of r where that lowers the cost."""
        scaled = model.family.within(radius)
        x, step, predicted, length = self._in_box(model, scaled)
        point = self._residuals.point(x)
        if predicted > 0.0 and math.isfinite(point.cost):
            bent = self._bent(model, scaled, step, point)
            if bent is not None and bent.cost < point.cost:
                point, step = bent, bent.x - model.point.x
        noise, actual = model.point.rounding_error, model.point.cost - point.cost
        ratio = -math.inf
        if predicted > 0.0 and math.isfinite(point.cost):
            ratio = (actual + noise) / (predicted + noise)
        return Trial(
            point,
            step,
            length,
            radius,
            predicted,
            actual,
            ratio,
            scaled.is_limited,
            scaled.predicted,
        )

    def _bent(
        self, model: LinearModel, scaled: Step, step: Tensor, point: ResidualPoint
    ) -> ResidualPoint | None:
        """The point after a second step, by the same factorisation, for what the model left out.

        r(x + p) - r - J p is half the second derivative of r along p, so that this follows a curved
        valley (Transtrum & Sethna 2012, arXiv:1201.5885, geodesic acceleration) without computing
        that derivative. It counts only where it is shorter than p.
        """
        here = model.point
        weights = here.weighted[0]
        left_out = point.r - here.r
        left_out = left_out if weights is None else weights * left_out
        left_out = left_out - model.push(step)
        second = model.family.correction(left_out, scaled.damping)
        if second is None:
            return None
        size = self._residuals.space.norm(second)
        if not _LEAST_BEND * scaled.length < size < _MOST_BEND * scaled.length:
            return None
        x = point.x + model.in_variables(second)
        return self._residuals.point(x if self._box is None else self._box.project(x))

    def _in_box(self, model: LinearModel, scaled: Step) -> tuple[Tensor, Tensor, float, float]:
        """The point, the step, what the model says of it, and its length in scaled variables."""
        step = model.in_variables(scaled.p)
        x = model.point.x + step
        inside = x if self._box is None else self._box.project(x)
        if self._box is None or not self._residuals.space.any(inside != x):
            return x, step, scaled.predicted, scaled.length
        step = inside - model.point.x
        length = self._residuals.space.norm(step / model.scale)
        return inside, step, model.decrease(step, self._residuals), length

    def _next_radius(self, trial: Trial) -> float:
        """Where the next search begins."""
        rule = self._rule
        if trial.ratio < rule.bad:
            return rule.shrink * trial.length
        if trial.is_limited and trial.ratio > rule.sure:
            return rule.grow * trial.radius
        return trial.radius
