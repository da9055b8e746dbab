# SPDX-License-Identifier: Apache-2.0
"""`saddle`: transition states, by following a mode uphill."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hesse.apps.physics.climb import Mode, step_of
from hesse.apps.physics.rigid import Rigid, RigidMotions, rigid_motions, root_masses_of
from hesse.boundary import public
from hesse.checkpoint import Checkpoint
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.errors import (
    ArgumentError,
    NonFiniteError,
    Status,
    check_callable,
    check_count,
    check_positive,
    check_tolerances,
)
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.result import OptimizeResult
from hesse.progress import Callback, FilePath, Run
from hesse.vectors.space import Space, Tree

# |g_new - g - H s| / |H s|: a step beyond the first is taken back, of the others the last enlarges
# the radius, and one between keeps it.
_REJECT, _KEEP, _ENLARGE = 0.7, 0.5, 0.25
_GROWTH, _SHRINK = 1.5, 0.4
_SHORTEST = 1e-8  # of the first radius


@dataclass
class Climb:
    """A point of the search, as a callback sees it."""

    x: Tensor
    H: CurvatureOperator
    radius: float
    mode: Mode | None = None
    number: int = 0
    products: int = 0
    """Hessian products so far."""
    evaluations: int = 1
    history: list[tuple[float, float]] = field(default_factory=list)

    @property
    def value(self) -> float:
        """f at the point."""
        return float(self.H.value)

    @property
    def gradient_norm(self) -> float:
        """|grad f| at the point."""
        return self.H.domain.norm(self.H.flat_gradient)


@dataclass
class SavedClimb:
    """What of a climb a checkpoint holds: the rest follows from the point."""

    x: Tensor
    radius: float = 0.0
    direction: Tensor | None = None
    """The mode that was climbed last."""
    curvature: float = 0.0
    lowest: float = 0.0
    number: int = 0
    products: int = 0
    evaluations: int = 1
    history: list[tuple[float, float]] = field(default_factory=list)

    @staticmethod
    def of(climb: Climb) -> SavedClimb:
        """That of a climb after a step."""
        mode = climb.mode
        assert mode is not None
        return SavedClimb(
            *(climb.x, climb.radius, mode.direction, mode.curvature, mode.lowest),
            *(climb.number, climb.products, climb.evaluations, climb.history),
        )

    def onto(self, climb: Climb) -> Climb:
        """The climb, which is at its start, where this one was."""
        assert self.direction is not None
        H = climb.H.at(climb.H.domain.unflatten(self.x))
        mode = Mode(self.direction, self.curvature, self.lowest, 2, 0, self.direction)
        history = [(value, size) for value, size in self.history]
        counts = self.number, self.products, self.evaluations
        return Climb(self.x, H, self.radius, mode, *counts, history)


@public("hesse.apps.saddle(f, x)")
def saddle(
    f: Callable[[Any], Tensor],
    x: Tree,
    direction: Tree | None = None,
    *,
    rigid: Rigid = "auto",
    domain: Callable[[Any], bool] | None = None,
    radius: float = 0.05,
    max_radius: float | None = None,
    atol: float = 1e-6,
    max_iterations: int = 300,
    max_products: int | None = None,
    max_seconds: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> OptimizeResult:
    r"""A transition state of f: a stationary point with one direction of negative curvature.

    $$ \min_{|s| \le \Delta} \tilde g^T s + \tfrac12 s^T \tilde H s, \qquad
       \tilde g = g - 2 u u^T g, \quad \tilde H = H - 2 \lambda u u^T $$

    The gradient and the Hessian are reflected along a mode u of curvature lambda, so that f is
    climbed along u and descended along all others. u is the lowest mode at the start and the one
    most like it afterwards, until it is the only one of negative curvature. A step is judged by how
    well the Hessian foretold the change of the gradient, since f itself shall neither rise nor
    fall.

    Args:
        f: the energy, a scalar function.
        x: where to start, as in `modes`: a minimum, or a guess of the transition state.
        direction: a direction, like x, to set out in; of a minimum, the sign matters. Default: the
            lowest mode.
        rigid: as in `modes`.
        domain: a function of x that says whether a point is allowed, such as a box: f may have no
            saddle point uphill, and the search climbs away for ever.
        radius, max_radius: of the first step, and of all; in the units of x. Default: four times
            the first.
        atol: of |grad f|.
        max_iterations, max_products, max_seconds, callback, progress, checkpoint: as in
            `hesse.minimize`.

    Returns:
        OptimizeResult. `success` says that |grad f| <= atol and that exactly one eigenvalue of the
        Hessian, without rigid motions, is negative; `min_curvature` is that.

    Cost: a step takes a gradient and, of up to 60 variables, their number of products; beyond that
        those of a warm-started Lanczos search for the mode, and of conjugate gradients.

    Raises:
        HesseError: f is not finite at x; x outside the domain; a direction that does not fit.

    References: Cerjan & Miller 1981, doi:10.1063/1.442352; Henkelman & Jonsson 1999,
        doi:10.1063/1.480097 (the dimer method, the same with differences).

    >>> f = lambda x: x[0] ** 4 / 4 - x[0] ** 2 / 2 + 2 * x[1] ** 2
    >>> found = saddle(f, torch.tensor([-1.0, 0.1], dtype=torch.float64))
    >>> found.success, bool(found.x.abs().max() < 1e-5), round(found.min_curvature, 3)
    (True, True, -1.0)
    """
    space = Space.of(x)
    check_positive(radius=radius)
    largest = 4.0 * radius if max_radius is None else max_radius
    check_positive(max_radius=largest)
    check_tolerances(atol=atol)
    check_count("max_iterations", max_iterations, 1)
    check_callable(domain=domain)
    limits = Run(
        "saddle",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    flat = space.flatten(x, what="x").detach().clone()
    search = _Search(f, space, rigid, domain, largest, atol)
    climb = search.start(flat, radius)
    along = None if direction is None else space.flatten(direction, what="direction").detach()
    status = Status.MAX_ITERATIONS
    settings = repr((rigid, radius, largest, atol))
    gradient = DiagonalOperator(space, climb.H.flat_gradient)  # f with a linear term has the same H
    file = Checkpoint(
        *(limits.checkpoint, climb.H),
        function="saddle",
        settings=settings,
        x=flat,
        direction=along,
        gradient=gradient,
    )
    saved = SavedClimb(flat)
    with limits:
        goes_on = file.resume(saved)
        climb = saved.onto(climb) if goes_on else search.first_step(climb, along)
        for _ in range(climb.number, max_iterations):
            climb.history.append((climb.value, climb.gradient_norm))
            if climb.gradient_norm <= atol and search.is_saddle(climb):
                status = Status.CONVERGED
                break
            if climb.radius < _SHORTEST * radius:
                status = Status.STAGNATED
                break
            if not limits.after_step(climb):
                status = limits.status
                break
            climb = search.step(climb)
            file.save(SavedClimb.of(climb))
    if limits.status is Status.INTERRUPTED:
        status = limits.status
    return search.result(climb, status)


@dataclass
class _Search:
    """The function, and how it is searched."""

    f: Callable[[Any], Tensor]
    space: Space
    rigid: Rigid
    domain: Callable[[Any], bool] | None
    largest: float
    atol: float
    motions: RigidMotions | None = None

    def start(self, x: Tensor, radius: float) -> Climb:
        if not self._is_allowed(x):
            raise ArgumentError(
                expected="x within the domain",
                got="domain(x) = False",
                remedy="Start at an allowed point.",
            )
        H = hessian_operator(self.f, self.space.unflatten(x))
        if not math.isfinite(float(H.value)) or not self.space.all_finite(H.flat_gradient):
            raise NonFiniteError(
                expected="a finite f(x)", got="NaN or Inf", remedy="Start at another point."
            )

        def value(v: Tensor) -> Tensor:
            with torch.no_grad():
                return self.f(self.space.unflatten(v))

        self.motions = rigid_motions(value, x, self.space, self.rigid)
        return Climb(x, H, radius)

    def first_step(self, climb: Climb, along: Tensor | None) -> Climb:
        """Set out along a direction, or from a stationary point along the lowest mode."""
        Z, _, mode = self._mode(climb, along)
        climb = replace(climb, mode=mode, products=climb.products + mode.products)
        if along is None and climb.gradient_norm > self.atol:
            return climb
        u = Z._matvec(mode.u)
        if along is not None and self.space.inner(along, u) < 0.0:
            u = -u
        kick, length = u if along is None else along / self.space.norm(along), climb.radius
        while length > _SHORTEST * climb.radius:
            moved = climb.x + length * kick
            H = climb.H.at(self.space.unflatten(moved))
            if self._is_allowed(moved) and self.space.all_finite(H.flat_gradient):
                mode = replace(mode, direction=u)
                return replace(climb, x=moved, H=H, mode=mode, evaluations=climb.evaluations + 1)
            length /= 2
        return climb

    def step(self, climb: Climb) -> Climb:
        """The next point, or the same one with a smaller radius."""
        Z, A, mode = self._mode(climb, None)
        g = climb.H.flat_gradient
        s, products = step_of(A, Z._rmatvec(g), mode, climb.radius)
        move = Z._matvec(s)
        climb = replace(
            climb,
            mode=replace(mode, direction=Z._matvec(mode.u)),
            number=climb.number + 1,
            products=climb.products + mode.products + products + 1,
            evaluations=climb.evaluations + 1,
        )
        moved = climb.x + move
        if not self._is_allowed(moved):
            return replace(climb, radius=_SHRINK * min(climb.radius, self.space.norm(move)))
        H, foretold = climb.H.at(self.space.unflatten(moved)), climb.H._matvec(move)
        error = self._error(H.flat_gradient - g - foretold, foretold)
        if not error < _REJECT:
            return replace(climb, radius=_SHRINK * min(climb.radius, self.space.norm(move)))
        factor = _GROWTH if error < _ENLARGE else 1.0 if error < _KEEP else _SHRINK
        radius = min(self.largest, factor * climb.radius)
        return replace(climb, x=moved, H=H, radius=radius)

    def is_saddle(self, climb: Climb) -> bool:
        """Whether exactly one eigenvalue is negative."""
        _, _, mode = self._mode(climb, None)
        climb.mode, climb.products = mode, climb.products + mode.products
        return mode.num_negative == 1

    def result(self, climb: Climb, status: Status) -> OptimizeResult:
        value, gradient = climb.value, climb.H.flat_gradient
        return OptimizeResult(
            x=self.space.unflatten(climb.x),
            success=status is Status.CONVERGED,
            status=status,
            message=status.value,
            fun=value,
            jac=self.space.unflatten(gradient),
            nit=climb.number,
            nfev=climb.evaluations,
            njev=climb.evaluations,
            nhev=climb.products,
            min_curvature=math.nan if climb.mode is None else climb.mode.lowest,
            history=climb.history,
        )

    def _mode(
        self, climb: Climb, along: Tensor | None
    ) -> tuple[LinearOperator, LinearOperator, Mode]:
        """The coordinates without rigid motions, the Hessian in them, and the mode to climb."""
        assert self.motions is not None
        ones = root_masses_of(None, self.space)
        Z = self.motions.coordinates(self.space, climb.x, ones)
        A = climb.H.project(Z)
        last = along if climb.mode is None else climb.mode.direction
        A, mode = Mode.of(A, None if last is None else Z._rmatvec(last))
        return Z, A, mode

    def _error(self, difference: Tensor, foretold: Tensor) -> float:
        """How far the gradient is from what the Hessian foretold; NaN counts as far."""
        size = self.space.norm(foretold)
        off = self.space.norm(difference)
        return off / size if size > 0.0 and math.isfinite(off) else math.inf

    def _is_allowed(self, x: Tensor) -> bool:
        return self.domain is None or bool(self.domain(self.space.unflatten(x)))
