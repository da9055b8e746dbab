# SPDX-License-Identifier: Apache-2.0
"""MINRES: the least residual over the Krylov space, for symmetric systems of any signature.

The Lanczos process makes A tridiagonal, reflections make it triangular, and x follows by a short
recurrence. The entries of the reflections give the curvature along every residual, and show whether
the system has a solution at all, before the step is taken and without a product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from hesse.errors import Status, check_flags
from hesse.krylov.method import Method
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.solution import Solution
from hesse.krylov.system import SolverState, System, after_step, iterate, repeat, solution_of

# How much less than rtol |A r| must be where the iteration is truncated: it is small early where
# the residual lies along small eigenvalues, which the step needs.
_FRACTION = 1e-2
# Where |A r| / |r| has come as near as this to the level at which it vanishes, and then grows by
# the second factor, rounding keeps it from that level, and further steps lead along the null space.
_NEAR, _GROWN = 4.0, 2.0
# Exact arithmetic would have ended after n steps. Every n steps, at least so many, the residual of
# the recurrence is compared with that of x; it is lost where the other is larger by this factor.
_FEWEST, _LOST = 50, 2.0


@dataclass
class Reflection:
    """The last reflection, and what it leaves of the next column of the tridiagonal matrix."""

    c: float = -1.0
    s: float = 0.0
    delta_bar: float = 0.0
    epsilon: float = 0.0


@dataclass
class MINRESState(SolverState):
    """The iteration after a step: w = beta v, y = M w for the Lanczos vector v to come."""

    w: Tensor | None = None
    w_last: Tensor | None = None
    y: Tensor | None = None
    d: Tensor | None = None
    d_last: Tensor | None = None
    beta: float = 0.0
    beta_last: float = 0.0
    phi: float = 0.0
    first_phi: float = 0.0
    """|r| at the start, in the norm of M."""
    curvature: float | None = None
    """Along `direction`."""
    A_norm: float = 0.0
    least_slope: float = math.inf
    """The least |A r| / |r| since the start, or since it was found to be too large."""
    verified_gradient: float = math.inf
    best: Tensor | None = None
    """Of the x whose residuals were recomputed on the way the one with the smallest."""
    best_residual: Tensor | None = None
    best_norm: float = math.inf
    lost_norm: float = math.inf
    """`best_norm` when the recurrence was last lost."""
    reflection: Reflection = field(default_factory=Reflection)


@dataclass(frozen=True, repr=False)
class MINRES(Method):
    r"""The method of minimum residuals, for symmetric A, definite or not.

    $$ x_k = \arg\min_{x - x_0 \in \mathcal{K}_k(A, r_0)} \lVert b - A x \rVert, \qquad
       r_k = s_k^2 r_{k-1} - \varphi_k c_k v_{k+1}, \qquad
       r_{k-1}^T A r_{k-1} = -\varphi_{k-1}^2 c_{k-1} \bar\gamma_k $$

    With a preconditioner M the norm is that of M. A singular system with a solution gives the one
    nearest to x0. A system without one gives the minimiser of |b - A x| nearest to x0, with the
    status LEAST_SQUARES, not converged: once |A r| <= rtol |A| |r| (at least sqrt(eps), beyond
    which rounding hides it, or a little more where it grows again), recomputed, with |A| estimated
    from below, the component of x along r is removed. A system that needs eigenvalues below
    rtol |A| needs a smaller rtol. With a preconditioner, which minimises another norm, the status
    is STAGNATED.

    `direction` is the first M r with (M r)'A(M r) <= 0, if there was one: A is not positive
    definite. The iteration continues, unless it is truncated.

    Args:
        truncated: end as Newton's method for minimisation wants it, without verifying: at the first
            such direction, with the status NEGATIVE_CURVATURE and the x before it; or as soon as
            |A r| <= rtol |A| |A x| / 100, which a singular system without a solution meets too.

    Cost: one product an iteration; one more for a nonzero x0, one to verify, two to verify a
        minimiser, and one every n iterations. None if b = 0. Vectors: x, r, three w, v, A v, two d;
        with a preconditioner two y; one for the direction; after n iterations x and r again.

    Raises:
        HesseError: A not tagged symmetric; M not positive definite.

    References:
        Paige & Saunders 1975, doi:10.1137/0712047; Liu & Roosta 2022, doi:10.1137/21M143666X (the
        curvature); Choi, Paige & Saunders 2011, doi:10.1137/100787921, and Liu, Milzarek & Roosta
        2023, arXiv:2309.17096 (the solution of least norm).

    >>> from hesse.krylov import solve
    >>> solution = solve(torch.diag(torch.tensor([1.0, -2.0])), torch.ones(2), MINRES())
    >>> solution.x, solution.iterations, solution.products
    (tensor([ 1.0000, -0.5000]), 2, 3)
    """

    name: ClassVar[str] = "minres"
    truncated: bool = False

    def _check(self) -> None:
        check_flags(truncated=self.truncated)

    def _solve(self, system: System) -> Solution:
        system.check_symmetric()
        state = system.start(MINRESState)
        is_exact = not self.truncated
        iterate(system, state, lambda: _descend(system, state, is_exact), verify=is_exact)
        if state.best is not None and not state.residual_norm <= state.best_norm:
            _return_to_best(state)
        pairs = (state.x, system.b), (state.x, state.residual)
        value = -0.5 * sum(system.A.domain.inner_pairs(*pairs))
        return solution_of(state, self.name, model_value=value, curvature=state.curvature)


def _descend(system: System, state: MINRESState, is_exact: bool) -> Status:
    """Steps until a rule ends them."""
    status = repeat(system, state, lambda: _step(system, state, is_exact))
    if status is Status.CONVERGED:
        state.w = None  # if the recomputed residual is too large, restart from that
    return status


def _begin(system: System, state: MINRESState) -> None:
    """Start the Lanczos process from the residual in the state."""
    w = state.residual.clone()
    y = system.precondition(w)
    state.beta = state.phi = math.sqrt(system.preconditioned_inner(w, y))
    state.first_phi = state.first_phi or state.phi
    state.beta_last, state.reflection = 0.0, Reflection()
    state.w, state.y, state.w_last = w, y, None
    state.d, state.d_last = torch.zeros_like(w), torch.zeros_like(w)
    state.least_slope = math.inf


def _step(system: System, state: MINRESState, is_exact: bool) -> Status:
    """One step; UNFINISHED to continue."""
    every = max(system.A.domain.n, _FEWEST)
    if is_exact and state.w is not None and state.iteration % every == 0:
        status = _compare(system, state)
        if status is not Status.UNFINISHED:
            return status
    if state.w is None:
        _begin(system, state)
    assert state.y is not None
    v = state.y / state.beta
    Av = system.A._matvec(v)
    state.products += 1
    alpha = system.A.domain.inner(v, Av)
    if not math.isfinite(alpha):
        return Status.NOT_FINITE
    w, y, beta, (rw, ww) = _lanczos(system, state, Av, alpha)
    if not math.isfinite(beta):
        return Status.NOT_FINITE
    last = state.reflection
    gamma_bar = last.s * last.delta_bar - last.c * alpha
    slope = math.hypot(gamma_bar, last.c * beta)  # |A r| / |r|
    state.A_norm = max(state.A_norm, math.hypot(alpha, beta))
    if state.direction is None and -last.c * gamma_bar <= unit_roundoff(system.A) * slope:
        state.direction = system.precondition(state.residual).clone()
        state.curvature = -last.c * gamma_bar * state.phi**2
    if not is_exact:
        if state.direction is not None:
            return Status.NEGATIVE_CURVATURE
        if slope * state.phi <= _FRACTION * system.rtol * state.A_norm * _length_of_Ax(state):
            return Status.TRUNCATED
    elif slope <= _level(system) * state.A_norm:
        return _least_squares(system, state)
    elif _grows_again(system, state, slope) and _vanishes(system, state):
        return Status.LEAST_SQUARES
    kept, added = _move(state, v, w, alpha, beta, gamma_bar)
    step = added * math.sqrt(ww)
    state.residual_norm = _norm(kept * state.residual_norm, step**2 - 2 * kept * (added * rw))
    state.w, state.w_last, state.y = w, state.w, y
    state.beta, state.beta_last = beta, state.beta
    state.iteration += 1
    return after_step(system, state)


def _compare(system: System, state: MINRESState) -> Status:
    """Restart from the best x that was compared, if the residual of the recurrence is lost."""
    if not system.run.allows(state, 2):
        return Status.UNFINISHED
    by_recurrence = state.residual_norm
    recomputed = system.b - system.A._matvec(state.x)
    state.products += 1
    size = system.A.domain.norm(recomputed)
    if size <= state.best_norm:
        state.best, state.best_residual, state.best_norm = state.x.clone(), recomputed, size
    if size <= _LOST * by_recurrence or state.best is None:
        return Status.UNFINISHED
    _return_to_best(state)
    if not state.best_norm <= 0.5 * state.lost_norm:
        return Status.STAGNATED
    state.lost_norm, state.w = state.best_norm, None
    return Status.UNFINISHED


def _return_to_best(state: MINRESState) -> None:
    assert state.best is not None
    assert state.best_residual is not None
    state.x, state.residual = state.best.clone(), state.best_residual.clone()
    state.residual_norm = state.best_norm


def _length_of_Ax(state: MINRESState) -> float:
    """|A x| in the norm of M: r is orthogonal to A x, and their sum is b."""
    return math.sqrt(max(state.first_phi**2 - state.phi**2, 0.0))


def _lanczos(
    system: System, state: MINRESState, Av: Tensor, alpha: float
) -> tuple[Tensor, Tensor, float, tuple[float, float]]:
    """The next w = beta v, y = M w and beta; r'w and w'w, of which the next |r| is made."""
    assert state.w is not None
    w = torch.sub(Av, state.w, alpha=alpha / state.beta)
    if state.w_last is not None:
        w.sub_(state.w_last, alpha=state.beta / state.beta_last)
    y = system.precondition(w)
    pairs = (state.residual, w), (w, w), *([] if y is w else [(w, y)])
    rw, ww, *others = system.A.domain.inner_pairs(*pairs)
    wy = others[0] if others else ww
    return w, y, math.sqrt(system.check_definite(wy)) if ww != 0.0 else 0.0, (rw, ww)


def _norm(first: float, rest: float) -> float:
    """The root of first^2 + rest, a sum of squares up to rounding."""
    return math.sqrt(max(first * first + rest, 0.0))


def _move(
    state: MINRESState, v: Tensor, w: Tensor, alpha: float, beta: float, gamma_bar: float
) -> tuple[float, float]:
    """x + c phi d, where d follows from the column that this step adds to the triangular matrix.

    Returns a and b of the next residual, a r - b w.
    """
    last = state.reflection
    assert state.d is not None and state.d_last is not None
    delta, gamma = last.c * last.delta_bar + last.s * alpha, math.hypot(gamma_bar, beta)
    c, s = gamma_bar / gamma, beta / gamma
    d = state.d_last.mul_(-last.epsilon / gamma)
    d.add_(state.d, alpha=-delta / gamma).add_(v, alpha=1.0 / gamma)
    state.x.add_(d, alpha=c * state.phi)
    kept, added = s * s, state.phi * c / gamma
    state.residual.mul_(kept).sub_(w, alpha=added)
    state.d, state.d_last = d, state.d
    state.phi *= s
    state.reflection = Reflection(c, s, -last.c * beta, last.s * beta)
    return kept, added


def _level(system: System) -> float:
    """How small |A r| / |A| |r| must be; below sqrt(eps) rounding hides it."""
    return max(system.rtol, unit_roundoff(system.A) ** 0.5)


def _grows_again(system: System, state: MINRESState, slope: float) -> bool:
    """Whether |A r| / |r| grows after it was nearly small enough, in norms without M."""
    if system.preconditioner is not None:
        return False
    state.least_slope = min(state.least_slope, slope)
    is_near = state.least_slope <= _NEAR * _level(system) * state.A_norm
    return is_near and slope > _GROWN * state.least_slope and system.run.allows(state, 2)


def _vanishes(system: System, state: MINRESState) -> bool:
    """Whether A r is nearly small enough when recomputed; x is then the shortest."""
    recomputed = system.b - system.A._matvec(state.x)
    Ar = system.A._matvec(recomputed)
    state.products += 2
    state.least_slope = math.inf
    size = system.A.domain.norm(recomputed)
    if not system.A.domain.norm(Ar) <= _GROWN * _NEAR * _level(system) * state.A_norm * size:
        return False
    state.residual, state.residual_norm = recomputed, size
    _shorten(system, state, Ar)
    return True


def _least_squares(system: System, state: MINRESState) -> Status:
    """Whether A r vanishes when recomputed; if not, the iteration restarts while that helps."""
    if not system.run.allows(state, 2):
        return system.run.status
    state.recompute(system)
    if state.is_solved(system):
        return Status.CONVERGED
    if system.preconditioner is not None:  # A M r vanishes, not A r
        return Status.STAGNATED
    Ar = system.A._matvec(state.residual)
    state.products += 1
    gradient, largest = (
        system.A.domain.norm(Ar),
        _level(system) * state.A_norm * state.residual_norm,
    )
    if not math.isfinite(gradient):
        return Status.NOT_FINITE
    _shorten(system, state, Ar)
    if gradient <= largest:
        return Status.LEAST_SQUARES
    if not gradient <= 0.5 * state.verified_gradient:
        return Status.STAGNATED
    state.verified_gradient, state.w = gradient, None
    return Status.UNFINISHED


def _shorten(system: System, state: MINRESState, Ar: Tensor) -> None:
    """Remove from x its component along r, which A maps to nearly zero."""
    r, space = state.residual, system.A.domain
    moved = state.x if system.x0 is None else state.x - system.x0
    moved_r, rr = space.inner_pairs((moved, r), (r, r))
    along = moved_r / rr
    shortened = torch.add(r, Ar, alpha=along)
    size = space.norm(shortened)
    if size <= 2.0 * state.residual_norm:  # or A r is not small enough for so long an x
        state.x.sub_(r, alpha=along)
        state.residual, state.residual_norm = shortened, size
