# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients, which every Newton-type method here uses.

One loop serves the solver, the line-search and the trust-region Newton methods and Hessian-free: it
takes a preconditioner, a starting point and a radius, stops at the first direction of zero or
negative curvature and returns it, and keeps iterates for backtracking.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from hesse.errors import Status, check_callable, check_count, check_flags, check_positive
from hesse.krylov.extreme import scale_to_one
from hesse.krylov.method import Method
from hesse.krylov.solution import Iterate, Solution
from hesse.krylov.system import (
    SolverState,
    System,
    after_step,
    curvatures,
    iterate,
    repeat,
    solution_of,
)
from hesse.vectors.space import Space


@dataclass
class CGState(SolverState):
    """The iteration after a step, with the quadratic model and the direction in use."""

    start_value: float = 0.0
    """The quadratic model x'Ax/2 - b'x at x0."""
    model_values: list[float] = field(default_factory=list)
    """The quadratic model after every step."""
    iterates: list[Iterate] = field(default_factory=list)
    p: Tensor | None = None
    rz: float = 0.0
    z: Tensor | None = None
    """M r where it is known already and there is an M."""
    square: float = 0.0
    """r'M r where it is known already; else 0."""
    unit: float = 1.0
    """What directions are multiplied by, where products with them might under- or overflow."""

    @property
    def model_value(self) -> float:
        """The quadratic model at x."""
        return self.model_values[-1] if self.model_values else self.start_value


@dataclass(frozen=True, repr=False)
class CG(Method):
    r"""Conjugate gradients, for symmetric positive definite A.

    $$ \alpha_k = \frac{r_k^T z_k}{p_k^T A p_k}, \quad x_{k+1} = x_k + \alpha_k p_k, \quad
       r_{k+1} = r_k - \alpha_k A p_k, \quad z_k = M r_k, \quad
       p_{k+1} = z_{k+1} + \frac{r_{k+1}^T z_{k+1}}{r_k^T z_k} p_k $$

    On p'Ap <= 0 the status is NEGATIVE_CURVATURE, `direction` is p, and x is the iterate before it,
    or with a finite radius the point where p leaves the sphere.

    Args:
        radius: stop on the sphere |x| = radius (Steihaug's rule; the norm is Euclidean).
        stop: a further rule on the state after a step, see `hesse.krylov.stopping`.
        keep: keep the iterates whose number it accepts.
        replace_every: recompute the residual every so many iterations, against the drift of the
            recurrence in long runs; one product each time.
        verify: recompute the residual before saying "converged" (and continue from the recomputed
            one if it is too large); False trusts the recurrence and never says so.

    Cost: one product an iteration; one more for a nonzero x0, and one to verify. None if b = 0.
        Vectors: x, r, p, A p, and one to verify; one more with a preconditioner.

    Raises:
        HesseError: A not tagged symmetric; M not positive definite.

    References:
        Hestenes & Stiefel 1952, doi:10.6028/jres.049.044; Steihaug 1983, doi:10.1137/0720042.

    >>> import torch
    >>> from hesse.krylov import solve
    >>> solution = solve(torch.diag(torch.tensor([1.0, 2.0])), torch.ones(2), CG(radius=1.0))
    >>> solution.status.name, solution.x, solution.products
    ('BOUNDARY', tensor([0.8000, 0.6000]), 3)
    """

    name: ClassVar[str] = "cg"
    radius: float = math.inf
    stop: Callable[[CGState], bool] | None = None
    keep: Callable[[int], bool] | None = None
    replace_every: int | None = None
    verify: bool = True

    @property
    def is_homogeneous(self) -> bool:
        """Whether no option is in the units of A, b or x, so that the system may be scaled."""
        return math.isinf(self.radius)

    def _check(self) -> None:
        check_positive(radius=self.radius)
        check_callable(stop=self.stop, keep=self.keep)
        check_flags(verify=self.verify)
        if self.replace_every is not None:
            self._set(replace_every=check_count("replace_every", self.replace_every, 1))

    def _solve(self, system: System) -> Solution:
        system.check_symmetric()
        state = _start(system)
        iterate(system, state, lambda: _descend(system, state, self), verify=self.verify)
        return solution_of(state, self.name, model_value=state.model_value, iterates=state.iterates)


def _start(system: System) -> CGState:
    state = system.start(CGState)
    if state.products:
        pairs = (state.x, system.b), (state.x, state.residual)
        state.start_value = -0.5 * sum(system.A.domain.inner_pairs(*pairs))
    return state


def _descend(system: System, state: CGState, options: CG) -> Status:
    """The recurrence, from the residual in `state` until a rule ends it."""
    status = repeat(system, state, lambda: _step(system, state, options))
    if status is Status.CONVERGED:
        # If the recomputed residual is too large, restart from that.
        state.p = state.z = None
        state.square = 0.0
    return status


def _step(system: System, state: CGState, options: CG) -> Status:
    """One step; UNFINISHED to continue."""
    space, radius = system.A.domain, options.radius
    p, rz = _next_direction(system, state)
    Ap = system.A._matvec(p)
    state.products += 1
    ((pAp, is_flat),) = curvatures(space, [p], [Ap])
    if not math.isfinite(pAp):
        return Status.NOT_FINITE
    state.p, state.rz = p, rz
    if is_flat:
        state.direction = p
        if math.isfinite(radius):
            _move(system, state, Ap, _to_boundary(space, state.x, p, radius), pAp)
        return Status.NEGATIVE_CURVATURE
    alpha = rz / pAp
    if math.isfinite(radius) and space.norm(state.x + alpha * p) >= radius:
        _move(system, state, Ap, _to_boundary(space, state.x, p, radius), pAp)
        state.history.append(state.residual_norm)
        return Status.BOUNDARY
    _move(system, state, Ap, alpha, pAp)
    return _after_step(system, state, options)


def _next_direction(system: System, state: CGState) -> tuple[Tensor, float]:
    """p = z + (r'z / last r'z) last p, and r'z; both in the unit of directions."""
    if state.z is None:
        z = system.precondition(state.residual)
        rz = state.square or system.preconditioned_inner(state.residual, z)
    else:
        z, rz = state.z, system.check_definite(state.square)
        state.z = None
    if state.p is None:
        state.unit = _unit(system.A.domain.norm(z))
        p = z.clone()
    else:
        p = z + (rz / state.rz) * state.p
    return (p, rz) if state.unit == 1.0 else (p * state.unit, rz * state.unit)


def _unit(length: float) -> float:
    """A power of two that brings this length close to 1, if it is extreme; else 1."""
    is_usual = 1e-9 < length < 1e9 or length == 0.0 or not math.isfinite(length)
    return 1.0 if is_usual else scale_to_one(length)


def _move(system: System, state: CGState, Ap: Tensor, alpha: float, pAp: float) -> None:
    """x + alpha p in place. p'r = r'z in exact arithmetic, so the model's change costs nothing."""
    assert state.p is not None
    state.x.add_(state.p, alpha=alpha)
    state.residual.sub_(Ap, alpha=alpha)
    r, space = state.residual, system.A.domain
    is_last = state.iteration + 1 == system.limit
    if system.preconditioner is not None and space.shards is not None and not is_last:
        state.z = system.precondition(r)  # one too many at the end saves a reduction at each step
    z = r if system.preconditioner is None else state.z
    # What the next step needs comes in the same reduction.
    squares, (state.residual_norm,) = space.measure([] if z is None else [(r, z)], [r])
    state.square = squares[0] if squares else 0.0
    state.model_values.append(state.model_value + alpha * (0.5 * alpha * pAp - state.rz))
    state.iteration += 1


def _after_step(system: System, state: CGState, options: CG) -> Status:
    every = options.replace_every
    if every and state.iteration % every == 0 and system.run.allows(state):
        state.recompute(system)
        state.z, state.square = None, 0.0
    if options.keep is not None and options.keep(state.iteration):
        state.iterates.append(Iterate(state.iteration, state.x.clone(), state.model_value))
    status = after_step(system, state)
    if status in (Status.UNFINISHED, Status.MAX_ITERATIONS) and options.stop is not None:
        return Status.TRUNCATED if options.stop(state) else status
    return status


def _to_boundary(space: Space, x: Tensor, p: Tensor, radius: float) -> float:
    """The t >= 0 with |x + t p| = radius, for |x| <= radius; free of cancellation."""
    xp, pp, xx = space.inner_pairs((x, p), (p, p), (x, x))
    inside = max(radius**2 - xx, 0.0)
    root = math.sqrt(xp**2 + pp * inside)
    return inside / (root + xp) if xp > 0.0 else (root - xp) / pp
