# SPDX-License-Identifier: Apache-2.0
"""LSMR: least squares with a rectangular operator, by products with A and with A'.

It is MINRES for A'A x = A'b without ever forming A'A: the Golub-Kahan process makes A bidiagonal,
two rotations a step make that triangular, and |A'r| falls monotonically. A penalty adds rows below
A; the iteration itself does not change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import ArgumentError, Status, is_number
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.stacked import stacked
from hesse.krylov.system import SolverState, System, after_step, iterate, repeat, solution_of
from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space


@dataclass
class Rotations:
    """The two rotations of the last step and what they leave for the next."""

    alpha_bar: float = 0.0
    rho: float = 1.0
    rho_bar: float = 1.0
    c_bar: float = 1.0
    s_bar: float = 0.0
    zeta: float = 0.0
    zeta_bar: float = 0.0


@dataclass
class ResidualNorm:
    """|r| from the rotations alone: section 5.1 of Fong & Saunders, in its notation."""

    beta_double_dot: float = 0.0
    beta_dot: float = 0.0
    rho_dot: float = 1.0
    tau_tilde: float = 0.0
    theta_tilde: float = 0.0

    def after(self, c: float, s: float, theta_bar: float, new: Rotations, last: Rotations) -> float:
        """The norm after a step."""
        beta_hat, self.beta_double_dot = c * self.beta_double_dot, -s * self.beta_double_dot
        rho_tilde = math.hypot(self.rho_dot, theta_bar)
        c_tilde, s_tilde = self.rho_dot / rho_tilde, theta_bar / rho_tilde
        self.tau_tilde = (last.zeta - self.theta_tilde * self.tau_tilde) / rho_tilde
        self.theta_tilde, self.rho_dot = s_tilde * new.rho_bar, c_tilde * new.rho_bar
        self.beta_dot = c_tilde * beta_hat - s_tilde * self.beta_dot
        tau_dot = (new.zeta - self.theta_tilde * self.tau_tilde) / self.rho_dot
        return math.hypot(self.beta_dot - tau_dot, self.beta_double_dot)


@dataclass
class LSMRState(SolverState):
    """The iteration after a step; with a penalty `residual` is (b - A x, -sqrt(tikhonov) x)."""

    u: Tensor | None = None
    v: Tensor | None = None
    h: Tensor | None = None
    h_bar: Tensor | None = None
    alpha: float = 0.0
    A_norm: float = 0.0
    verified_gradient: float = math.inf
    rotations: Rotations = field(default_factory=Rotations)
    estimate: ResidualNorm = field(default_factory=ResidualNorm)


@dataclass(frozen=True, repr=False)
class LSMR(Method):
    r"""Least squares for any A, of shape (m, n): minimises |b - A x|^2 + tikhonov |x|^2.

    $$ A V_k = U_{k+1} B_k, \qquad x_k = \arg\min_{x \in \mathcal{K}_k(A^T A, A^T b)}
       \lVert A^T (b - A x) - \lambda x \rVert $$

    Of several minimisers it finds the one nearest to x0. CONVERGED when |b - A x| (with a penalty,
    the root of what is minimised) meets the tolerance; LEAST_SQUARES, converged as well, when
    |A'r - lambda x| <= rtol |A| |r|, with A and r of the penalised problem, |A| estimated from
    below. Both are recomputed. `residual_norm` is |b - A x|.

    Args:
        tikhonov: lambda >= 0 in the penalty lambda |x|^2; it is not squared. The solution is that
            of (A'A + lambda I) x = A'b; for (A + c I) x = b give `solve` damping=c.

    Cost: two products an iteration, with A and A', and one to begin; one more for a nonzero x0; to
        verify one, or two of a minimiser. None if b = 0. Vectors: x, v, h, h_bar and two more of
        length n; r, u and one more of length m, or m + n (and b as well) with a penalty.

    Raises:
        HesseError: a preconditioner; tikhonov < 0; A without an adjoint.

    References:
        Fong & Saunders 2011, doi:10.1137/10079687X.

    >>> from hesse.krylov import solve
    >>> solution = solve(torch.ones(2, 1), torch.tensor([1.0, 3.0]), LSMR(tikhonov=2.0))
    >>> solution.x, solution.status.name, solution.residual_norm
    (tensor([1.]), 'LEAST_SQUARES', 2.0)
    """

    name: ClassVar[str] = "lsmr"
    tikhonov: float = 0.0

    @property
    def is_homogeneous(self) -> bool:
        """Whether no option is in the units of A, b or x, so that the system may be scaled."""
        return self.tikhonov == 0.0

    def _check(self) -> None:
        penalty = self.tikhonov
        if not (is_number(penalty) and math.isfinite(penalty) and penalty >= 0.0):
            raise ArgumentError(
                expected="a finite tikhonov >= 0",
                got=repr(penalty),
                remedy="Leave it out for none.",
            )

    def _solve(self, system: System) -> Solution:
        _check_no_preconditioner(system)
        codomain = system.A.codomain
        if self.tikhonov > 0.0:
            below = system.A.domain.zeros()
            A, b = Penalised(system.A, self.tikhonov), torch.cat([system.b, below])
            system = replace(system, A=A, b=b)
        state = system.start(LSMRState)
        iterate(system, state, lambda: _descend(system, state))
        size = codomain.norm(state.residual[: codomain.size])
        converged = state.status in (Status.CONVERGED, Status.LEAST_SQUARES)
        return replace(solution_of(state, self.name), converged=converged, residual_norm=size)


class Penalised(LinearOperator):
    """A above sqrt(tikhonov) I: its least squares are those of A with the penalty.

    >>> from hesse.operators import dense_operator
    >>> Penalised(dense_operator(torch.ones(1, 2)), 4.0).to_dense()
    tensor([[1., 1.],
            [2., 0.],
            [0., 2.]])
    """

    def __init__(self, A: LinearOperator, tikhonov: float) -> None:
        super().__init__(A.domain, stacked(A.codomain, A.domain))
        self.A, self.root = A, math.sqrt(tikhonov)

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.cat([self.A._matvec(v), self.root * v])

    def _rmatvec(self, u: Tensor) -> Tensor:
        rows = self.A.codomain.size
        return torch.add(self.A._rmatvec(u[:rows]), u[rows:], alpha=self.root)


def _descend(system: System, state: LSMRState) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state))
    if status is Status.CONVERGED:
        state.u = None  # if the recomputed residual is too large, restart from that
    return status


def _begin(system: System, state: LSMRState) -> float:
    """Start the Golub-Kahan process from the residual in the state; |A'r|."""
    state.u, beta = state.residual / state.residual_norm, state.residual_norm
    w = system.A._rmatvec(state.u)
    state.products += 1
    alpha = system.A.domain.norm(w)
    state.alpha, state.v = alpha, w / alpha if alpha > 0.0 else w
    state.h, state.h_bar = state.v, None
    state.A_norm = max(state.A_norm, alpha)
    state.rotations = Rotations(alpha_bar=alpha, zeta_bar=alpha * beta)
    state.estimate = ResidualNorm(beta_double_dot=beta)
    return alpha * beta


def _step(system: System, state: LSMRState) -> Status:
    """One step; UNFINISHED to continue."""
    if not system.run.allows(state, 3 if state.u is None else 2):
        return system.run.status
    if state.u is None and _begin(system, state) == 0.0:
        return _verified(system, state)
    assert state.u is not None and state.v is not None
    A = system.A
    u, beta = _unit(A.codomain, torch.sub(A._matvec(state.v), state.u, alpha=state.alpha))
    v, alpha = _unit(A.domain, torch.sub(A._rmatvec(u), state.v, alpha=beta))
    state.products += 2
    if not math.isfinite(beta + alpha):
        return Status.NOT_FINITE
    state.A_norm = max(state.A_norm, math.hypot(state.alpha, beta))
    _move(state, v, alpha, beta)
    state.u, state.v, state.alpha = u, v, alpha
    state.iteration += 1
    status = after_step(system, state)
    gradient = abs(state.rotations.zeta_bar)
    if status is not Status.CONVERGED and gradient <= _largest(system, state):
        return _verified(system, state)
    return status


def _unit(space: Space, w: Tensor) -> tuple[Tensor, float]:
    """w / |w|, or the zero vector, and |w|."""
    length = space.norm(w)
    return (w / length if length > 0.0 else w), length


def _move(state: LSMRState, v: Tensor, alpha: float, beta: float) -> None:
    """Rotate the new column, and move x along the direction that follows from it."""
    last = state.rotations
    rho = math.hypot(last.alpha_bar, beta)
    c, s = last.alpha_bar / rho, beta / rho
    theta, theta_bar = s * alpha, last.s_bar * rho
    rho_bar = math.hypot(last.c_bar * rho, theta)
    c_bar, s_bar = last.c_bar * rho / rho_bar, theta / rho_bar
    zeta, zeta_bar = c_bar * last.zeta_bar, -s_bar * last.zeta_bar
    new = Rotations(c * alpha, rho, rho_bar, c_bar, s_bar, zeta, zeta_bar)
    assert state.h is not None
    if state.h_bar is None:
        state.h_bar = state.h
    else:
        factor = theta_bar * rho / (last.rho * last.rho_bar)
        state.h_bar = torch.sub(state.h, state.h_bar, alpha=factor)
    state.x.add_(state.h_bar, alpha=zeta / (rho * rho_bar))
    state.h = torch.sub(v, state.h, alpha=theta / rho)
    state.residual_norm = state.estimate.after(c, s, theta_bar, new, last)
    state.rotations = new


def _largest(system: System, state: LSMRState) -> float:
    """How large the gradient |A'r| of a minimiser may be."""
    return system.rtol * state.A_norm * state.residual_norm


def _verified(system: System, state: LSMRState) -> Status:
    """Whether A'r vanishes when recomputed; if not, the iteration restarts while that helps."""
    if not system.run.allows(state, 2):
        return system.run.status
    state.recompute(system)
    if state.is_solved(system):
        return Status.CONVERGED
    gradient = system.A.domain.norm(system.A._rmatvec(state.residual))
    state.products += 1
    if not math.isfinite(gradient):
        return Status.NOT_FINITE
    if gradient <= _largest(system, state):
        return Status.LEAST_SQUARES
    if not gradient <= 0.5 * state.verified_gradient:
        return Status.STAGNATED
    state.verified_gradient, state.u = gradient, None
    return Status.UNFINISHED


def _check_no_preconditioner(system: System) -> None:
    if system.preconditioner is not None:
        raise ArgumentError(
            expected="no preconditioner for lsmr",
            got=system.preconditioner._title(),
            remedy="Solve with A @ M, whose solution y gives x = M y.",
        )
