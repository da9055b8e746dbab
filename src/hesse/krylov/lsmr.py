# SPDX-License-Identifier: Apache-2.0
"""LSMR: least squares with a rectangular operator, by products with A and with A'.

It is MINRES for A'A x = A'b without ever forming A'A: the Golub-Kahan process makes A bidiagonal,
two rotations a step make that triangular, and |A'r| falls monotonically. Damping is more rows
below A, so that the method itself knows nothing of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hesse.errors import ArgumentError, Status
from hesse.krylov.solution import Solution
from hesse.krylov.system import SolverState, System, after_step, iterate, repeat, solution_of
from hesse.operators.algebra import LinearOperator
from hesse.vectors.inner_products import norm
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
class LsmrState(SolverState):
    """The iteration after a step. With damping, `residual` is (b - A x, -sqrt(damping) x)."""

    u: Tensor | None = None
    v: Tensor | None = None
    h: Tensor | None = None
    h_bar: Tensor | None = None
    alpha: float = 0.0
    A_norm: float = 0.0
    verified_gradient: float = math.inf
    rotations: Rotations = field(default_factory=Rotations)
    estimate: ResidualNorm = field(default_factory=ResidualNorm)


def lsmr(system: System, damping: float = 0.0) -> Solution:
    r"""Minimise |b - A x|^2 + damping |x|^2 for any A, of shape (m, n).

    $$ A V_k = U_{k+1} B_k, \qquad x_k = \arg\min_{x \in \mathcal{K}_k(A^T A, A^T b)}
       \lVert A^T (b - A x) - \lambda x \rVert $$

    Of several minimisers it finds the one nearest to x0.

    Args:
        system: what to solve; b of length m, x0 of length n; no preconditioner.
        damping: lambda >= 0 in lambda |x|^2; it is not squared.

    Returns:
        Solution. CONVERGED when |b - A x| (with damping, the root of what is minimised) meets the
        tolerance of the system; LEAST_SQUARES, converged as well, when |A'r - lambda x| <=
        rtol |A| |r|, with A and r of the damped problem, |A| estimated from below. Both are
        recomputed. `residual_norm` is |b - A x|.

    Cost: two products an iteration, with A and A', and one to begin; one more for a nonzero x0; to
        verify one, or two of a minimiser. None if b = 0. Vectors: x, v, h, h_bar and two more of
        length n; r, u and one more of length m, or m + n (and b as well) with damping.

    Raises:
        ArgumentError: a preconditioner; damping < 0.
        OperatorError: A without an adjoint.

    References:
        Fong & Saunders 2011, doi:10.1137/10079687X.

    >>> from hesse.operators import dense_operator
    >>> A = dense_operator(torch.tensor([[1.0], [1.0]]))
    >>> solution = lsmr(System(A, torch.tensor([1.0, 3.0])))
    >>> solution.x, solution.status.name, solution.residual_norm
    (tensor([2.]), 'LEAST_SQUARES', 1.41)
    """
    _check(system, damping)
    m = system.A.shape[0]
    if damping > 0.0:
        below = system.b.new_zeros(system.A.shape[1])
        system = replace(system, A=Damped(system.A, damping), b=torch.cat([system.b, below]))
    state = system.start(LsmrState)
    iterate(system, state, lambda: _descend(system, state))
    converged = state.status in (Status.CONVERGED, Status.LEAST_SQUARES)
    solution = solution_of(state, "lsmr")
    return replace(solution, converged=converged, residual_norm=norm(state.residual[:m]))


class Damped(LinearOperator):
    """A above sqrt(damping) I: the least squares of A with damping are its, without.

    >>> from hesse.operators import dense_operator
    >>> Damped(dense_operator(torch.ones(1, 2)), 4.0).to_dense()
    tensor([[1., 1.],
            [2., 0.],
            [0., 2.]])
    """

    def __init__(self, A: LinearOperator, damping: float) -> None:
        rows, columns = A.shape
        super().__init__(A.domain, Space.flat(rows + columns, A.dtype, A.device))
        self.A, self.root = A, math.sqrt(damping)

    def _matvec(self, v: Tensor) -> Tensor:
        return torch.cat([self.A._matvec(v), self.root * v])

    def _rmatvec(self, u: Tensor) -> Tensor:
        rows = self.A.shape[0]
        return torch.add(self.A._rmatvec(u[:rows]), u[rows:], alpha=self.root)


def _descend(system: System, state: LsmrState) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state))
    if status is Status.CONVERGED:
        state.u = None  # should the recomputed residual say otherwise, begin anew from that
    return status


def _begin(system: System, state: LsmrState) -> float:
    """The Golub-Kahan process, from the residual in the state; |A'r|."""
    state.u, beta = state.residual / state.residual_norm, state.residual_norm
    w = system.A._rmatvec(state.u)
    state.products += 1
    alpha = norm(w)
    state.alpha, state.v = alpha, w / alpha if alpha > 0.0 else w
    state.h, state.h_bar = state.v, None
    state.A_norm = max(state.A_norm, alpha)
    state.rotations = Rotations(alpha_bar=alpha, zeta_bar=alpha * beta)
    state.estimate = ResidualNorm(beta_double_dot=beta)
    return alpha * beta


def _step(system: System, state: LsmrState) -> Status:
    """One step; UNFINISHED to go on."""
    if not system.run.allows(state, 3 if state.u is None else 2):
        return system.run.status
    if state.u is None and _begin(system, state) == 0.0:
        return _verified(system, state)
    assert state.u is not None and state.v is not None
    u, beta = _unit(torch.sub(system.A._matvec(state.v), state.u, alpha=state.alpha))
    v, alpha = _unit(torch.sub(system.A._rmatvec(u), state.v, alpha=beta))
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


def _unit(w: Tensor) -> tuple[Tensor, float]:
    """w / |w|, or the zero vector, and |w|."""
    length = norm(w)
    return (w / length if length > 0.0 else w), length


def _move(state: LsmrState, v: Tensor, alpha: float, beta: float) -> None:
    """The rotations of the new column, and x along the direction that they make."""
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


def _largest(system: System, state: LsmrState) -> float:
    """How large the gradient |A'r| of a minimiser may be."""
    return system.rtol * state.A_norm * state.residual_norm


def _verified(system: System, state: LsmrState) -> Status:
    """Whether A'r vanishes when recomputed; if not, the iteration begins anew while that helps."""
    if not system.run.allows(state, 2):
        return system.run.status
    state.recompute(system)
    if state.is_solved(system):
        return Status.CONVERGED
    gradient = norm(system.A._rmatvec(state.residual))
    state.products += 1
    if gradient <= _largest(system, state):
        return Status.LEAST_SQUARES
    if not gradient <= 0.5 * state.verified_gradient:
        return Status.STAGNATED
    state.verified_gradient, state.u = gradient, None
    return Status.UNFINISHED


def _check(system: System, damping: float) -> None:
    if system.preconditioner is not None:
        raise ArgumentError(
            f"lsmr({system.A}, b, preconditioner=M)",
            expected="no preconditioner",
            got=repr(system.preconditioner),
            remedy="Solve with A @ M, whose solution y gives x = M y.",
        )
    if not (math.isfinite(damping) and damping >= 0.0):
        raise ArgumentError(
            f"lsmr({system.A}, b, damping={damping!r})",
            expected="a finite damping >= 0",
            got=repr(damping),
            remedy="Leave it out for none.",
        )
