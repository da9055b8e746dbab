# SPDX-License-Identifier: Apache-2.0
"""The trust radius, picked by the true cost: several steps are tried from one factorisation.

A step costs one evaluation of r, a factorisation a Jacobian. Where the model is good the
radius grows, up to fourfold, as long as the cost falls; where it is bad the radius shrinks.
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
from hesse.optimize.squares.step_family import Step, StepFamily

# A gain ratio below the first is bad, above the second good; with less than the last no step.
_BAD, _GOOD, _LEAST = 0.25, 0.75, 1e-4
_GROW, _SHRINK = 2.0, 0.25
_MAX_TRIALS, _MAX_GROWTHS = 60, 2
# The length of a second step relative to the first: shorter ones do not pay, longer ones are wrong.
_LEAST_BEND, _MOST_BEND = 1e-3, 0.75


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
    family: StepFamily | NewtonFamily
    scale: Tensor
    held: Tensor | None
    push: Callable[[Tensor], Tensor]

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
    """

    def __init__(self, residuals: Residuals, box: Box | None, radius: float) -> None:
        self._residuals, self._box, self.radius = residuals, box, radius

    def search(self, model: LinearModel) -> Trial | None:
        """The best step that was tried, None if no length brings the cost down."""
        best = self._first(model)
        if best is None:
            return None
        if best.ratio > _GOOD and best.is_limited:
            best = self._longer(model, best)
        self.radius = _next_radius(best)
        return best

    def _first(self, model: LinearModel) -> Trial | None:
        """The first step that is good enough to move along, as the radius shrinks."""
        smallest = torch.finfo(model.scale.dtype).eps ** 2
        for _ in range(_MAX_TRIALS):
            trial = self._trial(model, self.radius)
            if trial.ratio > _LEAST and trial.point.is_usable:
                return trial
            self.radius = _SHRINK * min(self.radius, trial.length or self.radius)
            if self.radius < smallest or trial.promised <= model.point.rounding_error:
                return None
        return None

    def _longer(self, model: LinearModel, best: Trial) -> Trial:
        """A longer step, while the cost falls; not much longer, for it may lead to a plateau."""
        for _ in range(_MAX_GROWTHS):
            trial = self._trial(model, _GROW * best.radius)
            if not (trial.point.cost < best.point.cost and trial.point.is_usable):
                return best
            best = trial
            if not trial.is_limited or trial.ratio < _GOOD:
                return best
        return best

    def _trial(self, model: LinearModel, radius: float) -> Trial:
        """The step within a radius, bent along the curvature of r where that lowers the cost."""
        scaled = model.family.within(radius)
        step, predicted, length = self._in_box(model, scaled)
        point = self._residuals.point(model.point.x + step)
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
        x = point.x + model.scale * second
        return self._residuals.point(x if self._box is None else self._box.project(x))

    def _in_box(self, model: LinearModel, scaled: Step) -> tuple[Tensor, float, float]:
        """The step in the variables, what the model says of it, and its length in scaled ones."""
        x, step = model.point.x, model.scale * scaled.p
        if self._box is None:
            return step, scaled.predicted, scaled.length
        if model.held is not None:
            step = torch.where(model.held, torch.zeros_like(step), step)
        inside = self._box.project(x + step) - x
        if not self._residuals.space.any(inside != step):
            return step, scaled.predicted, scaled.length
        length = self._residuals.space.norm(inside / model.scale)
        return inside, model.decrease(inside, self._residuals), length


def _next_radius(trial: Trial) -> float:
    if trial.ratio < _BAD:
        return _SHRINK * trial.length
    if trial.is_limited and trial.ratio > _GOOD:
        return _GROW * trial.radius
    return trial.radius
