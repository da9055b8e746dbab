# SPDX-License-Identifier: Apache-2.0
"""The system A x = b, its tolerance, and the loop around every iterative method.

A method takes steps until its own recurrence says that the residual is small enough. That is then
verified: the residual is recomputed from x. If it is too large, the method continues from the
recomputed one as long as that still helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint
from hesse.errors import (
    NonFiniteError,
    OperatorError,
    Status,
    check_count,
    check_tolerances,
)
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.solution import Solution
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import PROMISE, check_symmetric
from hesse.progress import Run
from hesse.vectors.space import Space

StateT = TypeVar("StateT", bound="SolverState")


@dataclass
class System:
    """A x = b with flat vectors, the tolerance, and the limits of the iteration."""

    A: LinearOperator
    b: Tensor
    x0: Tensor | None = None
    preconditioner: LinearOperator | None = None
    rtol: float = 1e-5
    atol: float = 0.0
    max_iterations: int | None = None
    run: Run = field(default_factory=lambda: Run("solve"))
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        check_tolerances(rtol=self.rtol, atol=self.atol)
        if self.max_iterations is not None:
            check_count("max_iterations", self.max_iterations, 0)
        self.b_norm = self._finite_norm("b", self.b, self.A.codomain)
        if self.x0 is not None:
            self._finite_norm("x0", self.x0, self.A.domain)
        # What is left below that of the recurrence is rounding, and its squares may underflow.
        least = torch.finfo(self.b.dtype).eps ** 2 * self.b_norm
        self.tolerance = max(self.rtol * self.b_norm, self.atol, least)
        self.limit = 10 * self.A.domain.n if self.max_iterations is None else self.max_iterations
        columns = 1 if self.b.ndim == 1 else self.b.shape[1]
        self.most_products = 4 * columns * (self.limit + 10)

    def _finite_norm(self, name: str, vector: Tensor, space: Space) -> float:
        size = space.norm(vector.reshape(-1))
        if space.all_finite(vector):  # a norm that overflows is for `solve_scaled`
            return size
        raise NonFiniteError(
            expected=f"a finite {name}",
            got=f"|{name}| = {size}",
            remedy=f"Check {name} for NaN and Inf.",
        )

    def start(self, kind: type[StateT]) -> StateT:
        """The state at x0; its residual takes a product unless there is no x0, or b = 0."""
        if self.x0 is None or self.b_norm == 0.0 or not self.A.domain.any(self.x0):
            zero, size = self.A.domain.zeros(), self.b_norm
            return kind(zero, self.b.clone(), size, history=[size])
        residual = self.b - self.A._matvec(self.x0)
        size = self.A.codomain.norm(residual)
        return kind(self.x0.clone(), residual, size, products=1, history=[size])

    def column(self, j: int) -> System:
        """The system of one column of a block b."""
        x0 = None if self.x0 is None else self.x0[:, j].contiguous()
        checkpoint = None if self.checkpoint is None else self.checkpoint.part(f"column-{j}")
        return replace(self, b=self.b[:, j].contiguous(), x0=x0, checkpoint=checkpoint)

    def check_symmetric(self) -> None:
        """Raise unless A is known to be symmetric."""
        check_symmetric(self.A, f"{PROMISE} Use method='gmres', or 'lsmr', otherwise.")

    def precondition(self, r: Tensor) -> Tensor:
        """z = M r; r itself without a preconditioner."""
        return r if self.preconditioner is None else self.preconditioner._matvec(r)

    def preconditioned_inner(self, r: Tensor, z: Tensor) -> float:
        """r'z for z = M r; raises unless it is positive."""
        return self.check_definite(self.A.domain.inner(r, z))

    def check_definite(self, rz: float) -> float:
        """r'M r itself; raises unless it is positive."""
        if rz > 0.0:
            return rz
        raise OperatorError(
            expected="a positive definite preconditioner M: r'M r > 0",
            got=f"r'M r = {rz:.3g} with M = {self.preconditioner}",
            remedy="Give an approximation of the inverse of A that is symmetric positive definite.",
        )

    def save(self, state: Any, *, now: bool = False) -> None:
        """Write the state to the checkpoint, if there is one."""
        if self.checkpoint is not None:
            self.checkpoint.save(state, now=now)

    def resume(self, state: Any) -> None:
        """Continue from the checkpoint, if there is one."""
        if self.checkpoint is not None:
            self.checkpoint.resume(state)


@dataclass
class SolverState:
    """The state of an iteration after a step, which callbacks and stopping rules receive."""

    x: Tensor
    residual: Tensor
    residual_norm: float
    iteration: int = 0
    products: int = 0
    verified_norm: float = math.inf
    verified_at: int = 0
    """The iteration whose residual was recomputed last."""
    history: list[float] = field(default_factory=list)
    direction: Tensor | None = None
    status: Status = Status.UNFINISHED

    def is_solved(self, system: System) -> bool:
        """Whether the residual meets the tolerance."""
        return self.residual_norm <= system.tolerance

    def recompute(self, system: System) -> None:
        """Replace the residual of the recurrence by b - A x. One product."""
        self.residual = system.b - system.A._matvec(self.x)
        self.products += 1
        self.residual_norm = system.A.codomain.norm(self.residual)


Descend = Callable[[], Status]
"""Take steps, from the residual in the state, until a rule ends them."""

_MAY_CONVERGE = {
    Status.CONVERGED,
    Status.MAX_ITERATIONS,
    Status.MAX_PRODUCTS,
    Status.MAX_SECONDS,
    Status.TRUNCATED,
    Status.STOPPED,
}
_LIMITS = {Status.MAX_ITERATIONS, Status.MAX_PRODUCTS, Status.MAX_SECONDS, Status.STOPPED}
_FINAL = {
    Status.CONVERGED,
    Status.NEGATIVE_CURVATURE,
    Status.BOUNDARY,
    Status.LEAST_SQUARES,
    Status.STAGNATED,
}


def iterate(system: System, state: SolverState, descend: Descend, *, verify: bool = True) -> Status:
    """Descend, verify the residual, and descend again from it while that helps."""
    system.resume(state)
    if state.status not in _FINAL:
        state.status = Status.UNFINISHED
        with system.run as run:
            state.status = _iterate(system, state, descend, verify)
        if run.status is Status.INTERRUPTED:
            state.status = Status.INTERRUPTED
        if state.status not in _LIMITS:  # at which `repeat` saved the recurrence as it was
            system.save(state, now=True)
    return state.status


def _iterate(system: System, state: SolverState, descend: Descend, verify: bool) -> Status:
    while True:
        status = descend()
        if state.iteration == state.verified_at:
            return status
        if not verify:
            return Status.TRUNCATED if status is Status.CONVERGED else status
        if status in (Status.NOT_FINITE, Status.LEAST_SQUARES):  # the method verified the latter
            return status
        state.recompute(system)
        state.verified_at = state.iteration
        if not math.isfinite(state.residual_norm):
            return Status.NOT_FINITE
        if state.is_solved(system) and status in _MAY_CONVERGE:
            return Status.CONVERGED
        if status is not Status.CONVERGED:
            return status
        if state.residual_norm > 0.5 * state.verified_norm:
            return Status.STAGNATED
        state.verified_norm = state.residual_norm


def repeat(system: System, state: SolverState, step: Descend) -> Status:
    """Take steps until one ends the iteration, or no product is left for another."""
    if state.is_solved(system):
        return Status.CONVERGED
    if state.iteration >= system.limit:
        return Status.MAX_ITERATIONS
    status = Status.UNFINISHED
    while status is Status.UNFINISHED:
        if state.products >= system.most_products:  # restarts that gain little, without a step
            return Status.MAX_PRODUCTS
        status = step() if system.run.allows(state) else system.run.status
    if status in _LIMITS:
        system.save(state, now=True)
    return status


def after_step(system: System, state: SolverState) -> Status:
    """Record a step; UNFINISHED to continue."""
    state.history.append(state.residual_norm)
    if state.is_solved(system):
        return Status.CONVERGED
    if not system.run.after_step(state):
        return system.run.status
    system.save(state)
    return Status.UNFINISHED if state.iteration < system.limit else Status.MAX_ITERATIONS


def solution_of(state: SolverState, method: str, **fields: Any) -> Solution:
    """What the solver returns."""
    return Solution(
        x=state.x,
        converged=state.status is Status.CONVERGED,
        status=state.status,
        residual_norm=state.residual_norm,
        products=state.products,
        iterations=state.iteration,
        history=state.history,
        direction=state.direction,
        method=method,
        **fields,
    )


def curvatures(
    space: Space, P: Sequence[Tensor], AP: Sequence[Tensor]
) -> Iterator[tuple[float, bool]]:
    """p'Ap of each direction, and whether it is <= 0 to rounding, by one reduction.

    Below eps |p||Ap| it cannot be told from zero.
    """
    values, norms = space.measure(list(zip(P, AP, strict=True)), [*P, *AP])
    for pAp, length, image in zip(values, norms[: len(P)], norms[len(P) :], strict=True):
        yield pAp, pAp <= 0.0 or pAp <= unit_roundoff(space) * length * image
