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

from torch import Tensor

from hesse.boundary import public
from hesse.errors import (
    OperatorError,
    Status,
    check_callable,
    check_count,
    check_flags,
    check_positive,
)
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.solution import Iterate, Solution
from hesse.krylov.system import (
    SolverState,
    System,
    after_step,
    is_flat,
    iterate,
    repeat,
    solution_of,
)
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.vectors.inner_products import dot, norm


@dataclass
class CGState(SolverState):
    """The iteration after a step, with the quadratic model and the direction in use."""

    model_value: float = 0.0
    iterates: list[Iterate] = field(default_factory=list)
    p: Tensor | None = None
    rz: float = 0.0
    unit: float = 1.0
    """What directions are multiplied by, where products with them might under- or overflow."""


@dataclass
class CGRules:
    """What conjugate gradients are asked for beyond the system: see `cg`."""

    radius: float = math.inf
    stop: Callable[[CGState], bool] | None = None
    keep: Callable[[int], bool] | None = None
    verify: bool = True
    replace_every: int | None = None

    def __post_init__(self) -> None:
        check_positive("cg(A, b, radius)", radius=self.radius)
        check_callable("cg(A, b, stop, keep)", stop=self.stop, keep=self.keep)
        if self.replace_every is not None:
            check_count("replace_every", self.replace_every, 1, "cg(A, b, replace_every)")


@public("hesse.krylov.cg({A}, b)")
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
    replace_every: int | None = None,
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
        replace_every: recompute the residual every so many iterations, against the drift of the
            recurrence in long runs; one product each time.
        callback: called with the `CGState` after every step; a true result stops.
        progress: show a bar.

    Returns:
        Solution. On p'Ap <= 0 the status is NEGATIVE_CURVATURE, `direction` is p, and x is the
        iterate before it, or with a finite radius the point where p leaves the sphere.

    Cost: one product an iteration; one more for a nonzero x0, and one to verify. None if b = 0.
        Vectors: x, r, p, A p, and one to verify; one more with a preconditioner.

    Raises:
        OperatorError: A not tagged symmetric; M not positive definite.

    References:
        Hestenes & Stiefel 1952, doi:10.6028/jres.049.044; Steihaug 1983, doi:10.1137/0720042.

    >>> import torch
    >>> from hesse.operators import diagonal_operator
    >>> solution = cg(diagonal_operator(torch.tensor([1.0, 2.0])), torch.ones(2))
    >>> solution.x, solution.iterations, solution.products
    (tensor([1.0000, 0.5000]), 2, 3)
    """
    A = aslinearoperator(A)
    call = f"cg({A}, b)"
    A.domain.check_vector(b, call=call, what="b")
    if x0 is not None:
        A.domain.check_vector(x0, call=call, what="x0")
    check_flags(call, verify=verify)
    M = as_preconditioner(preconditioner, A, None, call)
    run = Run("cg", callback=callback, progress=progress)
    system = System(A, b, x0, M, rtol, atol, max_iterations, run)
    return solve_cg(system, CGRules(radius, stop, keep, verify, replace_every))


def solve_cg(system: System, rules: CGRules) -> Solution:
    """`cg` of a system that is put together already."""
    check_symmetric(system.A, "cg")
    state = _start(system)
    iterate(system, state, lambda: _descend(system, state, rules), verify=rules.verify)
    return solution_of(state, "cg", model_value=state.model_value, iterates=state.iterates)


def _start(system: System) -> CGState:
    state = system.start(CGState)
    if state.products:
        x_b, x_r = (system.A.domain.inner(state.x, v) for v in (system.b, state.residual))
        state.model_value = -0.5 * (x_b + x_r)
    return state


def _descend(system: System, state: CGState, rules: CGRules) -> Status:
    """The recurrence, from the residual in `state` until a rule ends it."""
    status = repeat(system, state, lambda: _step(system, state, rules))
    if status is Status.CONVERGED:
        state.p = None  # should the recomputed residual say otherwise, begin anew from that
    return status


def _step(system: System, state: CGState, rules: CGRules) -> Status:
    """One step; UNFINISHED to go on."""
    p, rz = _next_direction(system, state)
    Ap = system.A._matvec(p)
    state.products += 1
    pAp = system.A.domain.inner(p, Ap)
    if not math.isfinite(pAp):
        return Status.NOT_FINITE
    state.p, state.rz = p, rz
    if is_flat(pAp, p, Ap):
        state.direction = p
        if math.isfinite(rules.radius):
            _move(state, Ap, _to_boundary(state.x, p, rules.radius), pAp)
        return Status.NEGATIVE_CURVATURE
    alpha = rz / pAp
    if math.isfinite(rules.radius) and norm(state.x + alpha * p) >= rules.radius:
        _move(state, Ap, _to_boundary(state.x, p, rules.radius), pAp)
        state.history.append(state.residual_norm)
        return Status.BOUNDARY
    _move(state, Ap, alpha, pAp)
    return _after_step(system, state, rules)


def _next_direction(system: System, state: CGState) -> tuple[Tensor, float]:
    """p = z + (r'z / last r'z) last p, and r'z; both in the unit of directions."""
    z = precondition(system.preconditioner, state.residual)
    rz = positive(system, state.residual, z)
    if state.p is None:
        state.unit = _unit(norm(z))
        p = z.clone()
    else:
        p = z + (rz / state.rz) * state.p
    return (p, rz) if state.unit == 1.0 else (p * state.unit, rz * state.unit)


def _unit(length: float) -> float:
    """A power of two that brings this length close to 1, if it is extreme; else 1."""
    is_usual = 1e-9 < length < 1e9 or length == 0.0 or not math.isfinite(length)
    return 1.0 if is_usual else 2.0 ** -round(math.log2(length))


def _move(state: CGState, Ap: Tensor, alpha: float, pAp: float) -> None:
    """x + alpha p in place. p'r = r'z in exact arithmetic, so the model's change costs nothing."""
    assert state.p is not None
    state.x.add_(state.p, alpha=alpha)
    state.residual.sub_(Ap, alpha=alpha)
    state.residual_norm = norm(state.residual)
    state.model_value += alpha * (0.5 * alpha * pAp - state.rz)
    state.iteration += 1


def _after_step(system: System, state: CGState, rules: CGRules) -> Status:
    every = rules.replace_every
    if every and state.iteration % every == 0 and system.run.allows(state):
        state.recompute(system)
    if rules.keep is not None and rules.keep(state.iteration):
        state.iterates.append(Iterate(state.iteration, state.x.clone(), state.model_value))
    status = after_step(system, state)
    if status in (Status.UNFINISHED, Status.MAX_ITERATIONS) and rules.stop is not None:
        return Status.TRUNCATED if rules.stop(state) else status
    return status


def _to_boundary(x: Tensor, p: Tensor, radius: float) -> float:
    """The t >= 0 with |x + t p| = radius, for |x| <= radius; free of cancellation."""
    xp, pp, inside = dot(x, p), dot(p, p), max(radius**2 - dot(x, x), 0.0)
    root = math.sqrt(xp**2 + pp * inside)
    return inside / (root + xp) if xp > 0.0 else (root - xp) / pp


def precondition(preconditioner: LinearOperator | None, r: Tensor) -> Tensor:
    """z = M r."""
    return r if preconditioner is None else preconditioner._matvec(r)


def positive(system: System, r: Tensor, z: Tensor) -> float:
    """r'z, which must be positive for z = M r."""
    rz = system.A.domain.inner(r, z)
    if rz > 0.0:
        return rz
    raise OperatorError(
        f"hesse.solve({system.A}, b, preconditioner=M)",
        expected="a positive definite M: r'M r > 0",
        got=f"r'M r = {rz:.3g} with M = {system.preconditioner}",
        remedy="Give an approximation of the inverse of A that is symmetric positive definite.",
    )


def check_symmetric(A: LinearOperator, method: str) -> None:
    """Raise unless A is known to be symmetric."""
    A._check_symmetric(
        f"{method}({A}, b)",
        "Pass symmetric=True if A = A'; use method='gmres', or 'lsmr', otherwise.",
    )
