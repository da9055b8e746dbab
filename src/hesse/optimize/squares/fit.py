# SPDX-License-Identifier: Apache-2.0
"""The loop of `least_squares`: model, step, tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hesse.boundary import warn
from hesse.checkpoint import Checkpoint
from hesse.errors import Status
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.box import Box
from hesse.optimize.point import Counts
from hesse.optimize.squares.bidiagonal import bidiagonal_steps
from hesse.optimize.squares.newton_family import EmbeddedFamily, NewtonFamily
from hesse.optimize.squares.radius_search import CAREFUL, LinearModel, RadiusSearch, Rule, Trial
from hesse.optimize.squares.residual_point import ResidualPoint, Residuals
from hesse.optimize.squares.sketched_family import SketchedFamily
from hesse.optimize.squares.step_family import StepFamily, from_dense
from hesse.progress import Run
from hesse.vectors.space import Space, Tree

# The error of singular values by a decomposition in float64, relative to the largest. Rounding of
# the entries of a large matrix changes them by less than eps of its dtype, not by max(m, n) times
# that.
_BLUR = 16 * torch.finfo(torch.float64).eps
# Matrices with a shorter side than this are decomposed at once.
_LEAST_SKETCHED = 400
# The inner tolerance of the bidiagonalisation: at the start, and at the end.
_LOOSEST, _TIGHTEST = 0.1, 1e-6
# A step that lowers the cost by less than this fraction is slow; after a few, and up to so many
# variables, the second derivatives of r are used.
_SLOW, _MOST_HESSIAN = 0.05, 300
# So many small steps in a row are the end where a radius limits them.
_FEW = 3
# Rounding errors of the cost that a model may promise where there is nothing to gain.
_NOISE = 100.0


@dataclass
class FitState:
    """Everything that the next iteration depends on, as a checkpoint saves it."""

    x: Tensor
    counts: Counts
    scale: Tensor
    """D, with x = D y."""
    radius: float = 0.0
    start_cost: float = 0.0
    start_gradient_norm: float = 0.0
    number: int = 0
    slow_steps: int = 0
    """The last steps that lowered the cost by little."""
    small_steps: int = 0
    """The last steps that lowered the cost by at most ftol."""
    products: int = 0
    history: list[tuple[float, float]] = field(default_factory=list)
    status: Status = Status.UNFINISHED
    reason: str = ""
    """The test that was met."""


@dataclass(frozen=True)
class Iteration:
    """The state after a step, as a callback sees it."""

    number: int
    x: Tree
    value: float
    """The cost at x."""
    gradient_norm: float
    """The largest entry of the gradient of the cost, at the bounds of those that lead inside."""
    products: int
    status: Status


@dataclass(frozen=True)
class Tolerances:
    """ftol, xtol and gtol."""

    f: float
    x: float
    g: float


class Fit:
    """An iteration of models and steps.

    Args:
        residuals: the function.
        state: where to start, or where to continue.
        box: the bounds.
        tolerances: when to stop.
        limits: of seconds.
        max_iterations: the limit of iterations.
        adapts_scale: whether D is that of the columns of the Jacobian so far.
        checkpoint: where the state is saved.
        rule: how the radius is searched.
    """

    def __init__(
        self,
        residuals: Residuals,
        state: FitState,
        *,
        box: Box | None,
        tolerances: Tolerances,
        limits: Run,
        max_iterations: int,
        adapts_scale: bool,
        checkpoint: Checkpoint,
        rule: Rule = CAREFUL,
    ) -> None:
        self.residuals, self.state, self.box = residuals, state, box
        self.tolerances, self.limits, self.max_iterations = tolerances, limits, max_iterations
        self._adapts_scale, self._checkpoint, self._rule = adapts_scale, checkpoint, rule
        self.point = residuals.point(state.x, is_trial=state.number > 0)

    @property
    def space(self) -> Space:
        """The space of x."""
        return self.residuals.space

    def iterations(self) -> Iterator[Iteration]:
        """The iterations, first that of the start; the last has the final status."""
        self._begin()
        while True:
            state = self.state
            if len(state.history) == state.number:
                state.history.append((self.point.cost, self.optimality))
            if state.status is Status.UNFINISHED:
                state.status = self._status()
            state.products = self.residuals.products
            self.save()
            yield self._iteration()
            if state.status is not Status.UNFINISHED:
                return
            self._advance()

    def save(self, *, now: bool = False) -> None:
        """Write the state, from which the next iteration follows."""
        self._checkpoint.save(self.state, now=now)

    @property
    def optimality(self) -> float:
        """The largest entry of the gradient, of the variables that are not held at a bound."""
        return self.space.largest(self._free_gradient(self.point))[0]

    # -- The start ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        state = self.state
        r = self.point.r  # raises if it is not finite
        if self.point.cost < torch.finfo(r.dtype).tiny and self.residuals.codomain.any(r):
            warn(
                f"the residuals at x0, up to {self.residuals.codomain.largest(r)[0]:.2g}, are too "
                f"small for their squares to be numbers of {r.dtype}, and count as zero. Scale r "
                "up, by choosing its unit, or use float64."
            )
        self.space.check_finite(self.point.gradient, "Jacobian of r at x0")
        if state.number == 0 and not state.history:
            state.start_cost = self.point.cost
            state.start_gradient_norm = self.space.norm(self.point.gradient)
        self._rescale()
        if state.radius == 0.0:
            length = self.space.norm(self.point.x / state.scale)
            state.radius = length if 0.0 < length < math.inf else self._usual_length
        self._search = RadiusSearch(self.residuals, self.box, state.radius, self._rule)

    def _rescale(self) -> None:
        """D^-1 becomes the largest norm so far of each column."""
        if not self._adapts_scale:
            return
        norms = self.space.zeros() + torch.linalg.vector_norm(self.point.matrix, dim=0)
        scale = torch.where(norms > 0, 1 / norms, torch.ones_like(norms))
        is_first = self.state.number == 0
        new = scale if is_first else torch.minimum(self.state.scale, scale)
        self.state.scale = new

    # -- One iteration -----------------------------------------------------------------------------

    def _advance(self) -> None:
        state, before = self.state, self.point
        if self._model is None:
            state.status, state.reason = Status.CONVERGED, _ROUNDING
            return
        trial = self._search.search(self._model)
        state.radius = self._search.radius
        if trial is None or (trial.is_limited and trial.length < self._tiny):
            state.status, state.reason = self._stuck()
            return
        self.point, state.x = trial.point, trial.point.x
        state.counts = self.residuals.counts
        state.number += 1
        self._judge(before, trial)
        self._forget()
        self._rescale()

    @cached_property
    def _model(self) -> LinearModel | None:
        """The linear model here; None if it promises less than rounding."""
        held = None if self.box is None else self.box.held(self.point.x, self.point.gradient)
        scale = self.state.scale
        free = scale if held is None else torch.where(held, torch.zeros_like(scale), scale)
        family = self._newton(free) if self.state.slow_steps >= _FEW else None
        if family is None:
            family = self._dense(free) if self.residuals.is_dense else self._large(free)
        if not family.promises(0.1 * self.point.rounding_error):
            return None
        return LinearModel(self.point, family, scale, held, self._push)

    def _forget(self) -> None:
        self.__dict__.pop("_model", None)

    def _newton(self, scale: Tensor) -> NewtonFamily | None:
        """With the second derivatives of r, where residuals that stay large make steps slow."""
        point = self.point
        if not self.residuals.is_dense or self.space.n > _MOST_HESSIAN:
            return None
        if (S := point.second_order) is None:
            return None
        A = point.matrix.double() * scale
        H = A.T @ A + S.double() * scale * scale[:, None]
        free = scale > 0
        family = NewtonFamily(H[free][:, free], (point.gradient * scale)[free], point.x.dtype)
        return family if bool(free.all()) else EmbeddedFamily(family, free)

    def _dense(self, scale: Tensor) -> StepFamily | SketchedFamily:
        point, dtype = self.point, self.point.x.dtype
        A = point.matrix * scale
        epsilon = max(torch.finfo(dtype).eps, _BLUR)
        family = SketchedFamily if min(A.shape) >= _LEAST_SKETCHED else from_dense
        return family(A, point.weighted[1], epsilon, dtype)

    def _large(self, scale: Tensor) -> StepFamily:
        point = self.point
        A = point.operator @ DiagonalOperator(self.space, scale)
        size = self.space.norm(self._free_gradient(point))
        relative = size / self.state.start_gradient_norm
        family = bidiagonal_steps(
            A,
            point.weighted[1],
            self._search.radius,
            rtol=min(_LOOSEST, max(_TIGHTEST, relative**0.5 * _LOOSEST)),
            epsilon=torch.finfo(point.x.dtype).eps,
            goes_on=lambda products: self.limits.goes_on(self._iteration(products)),
        )
        self.residuals.products += family.products
        return family

    def _push(self, step: Tensor) -> Tensor:
        """The weighted Jacobian times a step."""
        if self.residuals.is_dense:
            return self.point.matrix @ step
        self.residuals.products += 1
        return self.point.operator._matvec(step)

    # -- Why it ends -------------------------------------------------------------------------------

    def _status(self) -> Status:
        if self._is_stationary():
            return Status.CONVERGED
        if self.state.number >= self.max_iterations:
            return Status.MAX_ITERATIONS
        if not self.limits.goes_on(self._iteration()):
            return self.limits.status
        return Status.UNFINISHED

    def _is_stationary(self) -> bool:
        point, state, eps = self.point, self.state, torch.finfo(self.point.x.dtype).eps
        if point.cost <= eps**2 * state.start_cost:
            state.reason = _ZERO
            return True
        gradient = self._free_gradient(point)
        if not self.space.any(gradient):
            state.reason = _GRADIENT
            return True
        if self.residuals.is_dense:
            s = point.weighted[1]
            columns = torch.linalg.vector_norm(point.matrix.double(), dim=0)
            columns = torch.where(columns > 0, columns, torch.ones_like(columns))
            cosine = float((gradient.abs() / columns).max()) / self.residuals.codomain.norm(s)
        else:
            scaled = gradient * state.scale
            unit = self.space.largest(scaled)[0]  # squares of small or large ones would not be
            cosine = self.space.norm(scaled / unit) / (self._norm() / unit)
        state.reason = _GRADIENT if cosine <= self.tolerances.g else ""
        return bool(state.reason)

    def _norm(self) -> float:
        """|A| |s| from below, A the scaled Jacobian: by the direction of the gradient."""
        point, scale = self.point, self.state.scale
        direction = point.gradient * scale
        direction = direction / self.space.largest(direction)[0]
        direction = direction / self.space.norm(direction)
        self.residuals.products += 1
        size = self.residuals.codomain.norm(point.operator._matvec(direction * scale))
        return size * self.residuals.codomain.norm(point.weighted[1])

    def _free_gradient(self, point: ResidualPoint) -> Tensor:
        if self.box is None:
            return point.gradient
        held = self.box.held(point.x, point.gradient)
        return torch.where(held, torch.zeros_like(point.gradient), point.gradient)

    def _judge(self, before: ResidualPoint, trial: Trial) -> None:
        """Whether this step was the last: it changed next to nothing."""
        state, ftol, family = self.state, self.tolerances.f, self._known_model.family
        is_slow = trial.actual <= _SLOW * before.cost
        state.slow_steps = state.slow_steps + 1 if is_slow else 0
        is_small = max(trial.actual, trial.predicted) <= ftol * before.cost and trial.ratio > 0.25
        is_small = is_small and state.radius <= trial.radius  # or the next step is a longer one
        state.small_steps = state.small_steps + 1 if is_small else 0
        is_last = state.small_steps >= _FEW
        if is_last or (is_small and not trial.is_limited):
            state.status, state.reason = Status.CONVERGED, _COST
        elif family.is_complete and self._is_short(before):
            state.status, state.reason = Status.CONVERGED, _STEP

    def _is_short(self, point: ResidualPoint) -> bool:
        """Whether the Gauss-Newton step is shorter than xtol."""
        length = self.tolerances.x * self.space.norm(point.x / self.state.scale)
        return length > 0.0 and self._known_model.family.is_within(length)

    def _stuck(self) -> tuple[Status, str]:
        """No step lowers the cost: because there is nothing to gain, or because r is not smooth.

        A step of relative length eps^(2/3) promises less than rounding in the first case, for there
        the gradient vanishes, and more in the second.
        """
        family = self._known_model.family
        if family.is_complete and self._is_short(self.point):
            return Status.CONVERGED, _STEP
        promised = min(family.within(self._tiny).predicted, family.full_decrease / _NOISE)
        if promised <= max(self.point.rounding_error, self._noise()):
            return Status.CONVERGED, _ROUNDING
        return Status.STAGNATED, ""

    @property
    def _tiny(self) -> float:
        """A length in scaled variables that is longer than rounding, but not by much."""
        size = self.space.norm(self.point.x / self.state.scale) or self._usual_length
        return torch.finfo(self.point.x.dtype).eps ** (2 / 3) * size

    @property
    def _usual_length(self) -> float:
        """The length of steps from x = 0: with columns of norm one, the norm of the residuals."""
        if not self._adapts_scale:
            return 1.0
        return self.residuals.codomain.norm(self.point.weighted[1]) or 1.0

    def _noise(self) -> float:
        """How much the cost changes as x changes in its last digit."""
        eps, generator = torch.finfo(self.point.x.dtype).eps, torch.Generator().manual_seed(0)
        changes = []
        for _ in range(_FEW):
            x = self.point.x * (1 + eps * self.space.rademacher(generator))
            cost = self.residuals.point(x if self.box is None else self.box.project(x)).cost
            changes.append(abs(cost - self.point.cost) if math.isfinite(cost) else 0.0)
        return max(changes)

    @property
    def _known_model(self) -> LinearModel:
        assert self._model is not None
        return self._model

    def _iteration(self, products: int = 0) -> Iteration:
        state, point = self.state, self.point
        x, taken = self.residuals.as_given(point.x.clone()), self.residuals.products + products
        value, gradient_norm = state.history[-1]
        return Iteration(state.number, x, value, gradient_norm, taken, state.status)


_ZERO = "The residuals are zero up to rounding."
_GRADIENT = "The gradient is small (gtol): the residuals are orthogonal to the Jacobian."
_COST = "The last steps lowered the cost by less than ftol, as the model had predicted."
_STEP = "The Gauss-Newton step is shorter than xtol."
_ROUNDING = "No step lowers the cost by more than rounding."
