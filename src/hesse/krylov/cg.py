# SPDX-License-Identifier: Apache-2.0
"""Conjugate gradients: the kernel of every Newton-type method here.

One loop serves the solver, the line-search and the trust-region Newton methods and Hessian-free: it
takes a preconditioner, a starting point and a radius, stops at the first direction of zero or
negative curvature and returns it, and keeps iterates to backtrack over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from hesse.errors import NonFiniteError, OperatorError, Status
from hesse.krylov.solution import Iterate, Solution
from hesse.operators.base import LinearOperator
from hesse.progress import Callback, asks_to_stop, progress_bar
from hesse.vectors import dot, norm


@dataclass
class CGState:
    """The iteration after a step: what callbacks, stopping rules and tests look at."""

    x: Tensor
    residual: Tensor
    residual_norm: float
    model_value: float
    iteration: int = 0
    products: int = 0
    verified_norm: float = math.inf
    history: list[float] = field(default_factory=list)
    iterates: list[Iterate] = field(default_factory=list)
    direction: Tensor | None = None


def cg(
    A: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    preconditioner: LinearOperator | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
    radius: float = math.inf,
    stop: Callable[[CGState], bool] | None = None,
    keep: Callable[[int], bool] | None = None,
    verify: bool = True,
    callback: Callback | None = None,
    progress: bool = False,
) -> Solution:
    r"""Solve A x = b for symmetric positive definite A by preconditioned conjugate gradients.

    $$ \alpha_k = \frac{r_k^T z_k}{p_k^T A p_k}, \quad x_{k+1} = x_k + \alpha_k p_k, \quad
       r_{k+1} = r_k - \alpha_k A p_k, \quad z_k = M r_k, \quad
       p_{k+1} = z_{k+1} + \frac{r_{k+1}^T z_{k+1}}{r_k^T z_k} p_k $$

    Args:
        A: symmetric operator, n x n.
        b: right-hand side, shape (n,).
        x0: where to start; default 0.
        preconditioner: symmetric positive definite M, close to the inverse of A.
        rtol, atol: converged when |b - A x| <= max(rtol |b|, atol).
        max_iterations: default 10 n.
        radius: stop on the sphere |x| = radius (Steihaug's rule; the norm is Euclidean).
        stop: a further rule on the state after a step, see `hesse.krylov.stopping`.
        keep: keep the iterates whose number it accepts.
        verify: recompute the residual before saying "converged" (and go on from the recomputed one
            if it is too large); False trusts the recurrence and never says so.
        callback: called with the `CGState` after every step; a true result stops.
        progress: show a bar.

    Returns:
        Solution. On p'Ap <= 0 the status is NEGATIVE_CURVATURE, `direction` is p, and x is the
        iterate before it, or with a finite radius the point where p leaves the sphere.

    Cost: one product an iteration; one more for a nonzero x0, and one to verify. None if b = 0.
        Vectors: x, r, p, A p, and z with a preconditioner.

    Raises:
        OperatorError: A not tagged symmetric; M not positive definite.

    References:
        Hestenes & Stiefel 1952, doi:10.6028/jres.049.044; Steihaug 1983, doi:10.1137/0720042.

    >>> from hesse.operators import diagonal_operator
    >>> solution = cg(diagonal_operator(torch.tensor([1.0, 2.0])), torch.ones(2))
    >>> solution.x, solution.iterations, solution.products
    (tensor([1.0000, 0.5000]), 2, 3)
    """
    b_norm = _check_system(A, b)
    tolerance = max(rtol * b_norm, atol)
    limit = 10 * b.numel() if max_iterations is None else max_iterations
    state = _start(A, b, x0, b_norm)
    rules = _Rules(tolerance, limit, radius, stop, keep, callback)
    try:
        with progress_bar(progress, "cg", limit) as bar:
            rules.bar = bar
            status = _iterate(A, b, state, preconditioner, rules, verify)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Solution(
        x=state.x,
        converged=status is Status.CONVERGED,
        status=status,
        residual_norm=state.residual_norm,
        products=state.products,
        iterations=state.iteration,
        history=state.history,
        model_value=state.model_value,
        direction=state.direction,
        iterates=state.iterates,
    )


@dataclass
class _Rules:
    """When to end, and what to keep."""

    tolerance: float
    limit: int
    radius: float
    stop: Callable[[CGState], bool] | None
    keep: Callable[[int], bool] | None
    callback: Callback | None
    bar: tqdm | None = None

    def after_step(self, state: CGState) -> Status:
        """Record the step that was taken; UNFINISHED to go on."""
        state.history.append(state.residual_norm)
        if self.bar is not None:
            self.bar.update()
        if self.keep is not None and self.keep(state.iteration):
            state.iterates.append(Iterate(state.iteration, state.x.clone(), state.model_value))
        if state.residual_norm <= self.tolerance:
            return Status.CONVERGED
        if self.stop is not None and self.stop(state):
            return Status.TRUNCATED
        return Status.STOPPED if asks_to_stop(self.callback, state) else Status.UNFINISHED


def _start(A: LinearOperator, b: Tensor, x0: Tensor | None, b_norm: float) -> CGState:
    """x0 with its residual; zero, in no product, if there is no x0 or b = 0."""
    if x0 is None or b_norm == 0.0 or not bool(x0.any()):
        return CGState(torch.zeros_like(b), b.clone(), b_norm, 0.0, history=[b_norm])
    residual = b - A._matvec(x0)
    model_value = -0.5 * (A.inner(x0, b) + A.inner(x0, residual))
    r_norm = norm(residual)
    return CGState(x0.clone(), residual, r_norm, model_value, products=1, history=[r_norm])


def _iterate(
    A: LinearOperator,
    b: Tensor,
    state: CGState,
    preconditioner: LinearOperator | None,
    rules: _Rules,
    verify: bool,
) -> Status:
    """Descend until done, recompute the residual, and descend again from it while that helps."""
    while True:
        status = _descend(A, state, preconditioner, rules)
        if state.iteration == 0:
            return status
        if not verify:
            return Status.TRUNCATED if status is Status.CONVERGED else status
        if status is Status.NOT_FINITE:
            return status
        improves = _recompute_residual(A, b, state)
        if state.residual_norm <= rules.tolerance and status in _MAY_CONVERGE:
            return Status.CONVERGED
        if status is not Status.CONVERGED:
            return status
        if not improves:
            return Status.STAGNATED


_MAY_CONVERGE = {Status.CONVERGED, Status.MAX_ITERATIONS, Status.TRUNCATED, Status.STOPPED}


def _recompute_residual(A: LinearOperator, b: Tensor, state: CGState) -> bool:
    """Replace the residual of the recurrence by b - A x; whether it has halved since last time."""
    state.residual = b - A._matvec(state.x)
    state.products += 1
    state.residual_norm = norm(state.residual)
    improves = state.residual_norm <= 0.5 * state.verified_norm
    state.verified_norm = state.residual_norm
    return improves


def _descend(
    A: LinearOperator, state: CGState, preconditioner: LinearOperator | None, rules: _Rules
) -> Status:
    """The recurrence, from the residual in `state` until a rule ends it."""
    if state.residual_norm <= rules.tolerance:
        return Status.CONVERGED
    x, r = state.x, state.residual
    z = _precondition(preconditioner, r)
    p = z.clone()
    rz = _positive(A.inner(r, z), preconditioner)
    while state.iteration < rules.limit:
        Ap = A._matvec(p)
        state.products += 1
        pAp = A.inner(p, Ap)
        if not math.isfinite(pAp):
            return Status.NOT_FINITE
        if _is_flat(pAp, p, Ap):
            state.direction = p
            if math.isfinite(rules.radius):
                _step(state, p, Ap, _to_boundary(x, p, rules.radius), rz, pAp)
            return Status.NEGATIVE_CURVATURE
        alpha = rz / pAp
        if math.isfinite(rules.radius) and norm(x + alpha * p) >= rules.radius:
            _step(state, p, Ap, _to_boundary(x, p, rules.radius), rz, pAp)
            rules.after_step(state)
            return Status.BOUNDARY
        _step(state, p, Ap, alpha, rz, pAp)
        status = rules.after_step(state)
        if status is not Status.UNFINISHED:
            return status
        z = _precondition(preconditioner, r)
        rz, rz_last = _positive(A.inner(r, z), preconditioner), rz
        p = z + (rz / rz_last) * p
    return Status.MAX_ITERATIONS


def _step(state: CGState, p: Tensor, Ap: Tensor, alpha: float, rz: float, pAp: float) -> None:
    """x + alpha p in place. p'r = r'z in exact arithmetic, so the model's change costs nothing."""
    state.x.add_(p, alpha=alpha)
    state.residual.sub_(Ap, alpha=alpha)
    state.residual_norm = norm(state.residual)
    state.model_value += alpha * (0.5 * alpha * pAp - rz)
    state.iteration += 1


def _is_flat(pAp: float, p: Tensor, Ap: Tensor) -> bool:
    """Whether p'Ap <= 0 to rounding: |p'Ap| below eps |p||Ap| is indistinguishable from zero."""
    return pAp <= 0.0 or pAp <= torch.finfo(p.dtype).eps * norm(p) * norm(Ap)


def _to_boundary(x: Tensor, p: Tensor, radius: float) -> float:
    """The t >= 0 with |x + t p| = radius, for |x| <= radius; free of cancellation."""
    xp, pp, inside = dot(x, p), dot(p, p), max(radius**2 - dot(x, x), 0.0)
    root = math.sqrt(xp**2 + pp * inside)
    return inside / (root + xp) if xp > 0.0 else (root - xp) / pp


def _precondition(preconditioner: LinearOperator | None, r: Tensor) -> Tensor:
    return r if preconditioner is None else preconditioner._matvec(r)


def _positive(rz: float, preconditioner: LinearOperator | None) -> float:
    if rz > 0.0:
        return rz
    raise OperatorError(
        "cg(A, b, preconditioner=M)",
        expected="a positive definite M: r'M r > 0",
        got=f"r'M r = {rz:.3g} with M = {preconditioner}",
        remedy="Give an approximation of the inverse of A that is symmetric positive definite.",
    )


def _check_system(A: LinearOperator, b: Tensor) -> float:
    """|b|, after making sure that A and b make a symmetric system."""
    call = f"cg({A}, b)"
    if not A.symmetric:
        raise OperatorError(
            call,
            expected="a symmetric operator",
            got="one that is not known to be symmetric",
            remedy="Pass symmetric=True if A = A'; solve the normal equations A.T @ A otherwise.",
        )
    A.domain.check_vector(b, call=call, what="b")
    b_norm = norm(b)
    if not math.isfinite(b_norm):
        raise NonFiniteError(
            call, expected="a finite b", got=f"|b| = {b_norm}", remedy="Check b for NaN and Inf."
        )
    return b_norm
