# SPDX-License-Identifier: Apache-2.0
"""`minimize`: a smooth function of many variables, to high accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import HessianMode, hessian_operator
from hesse.errors import NonFiniteError, Status, check_choice
from hesse.operators.algebra import LinearOperator
from hesse.optimize.armijo import ArmijoSearch
from hesse.optimize.loop import Iteration, iterate
from hesse.optimize.point import Objective
from hesse.optimize.proposal import Search
from hesse.optimize.result import OptimizeResult
from hesse.optimize.truncated_newton import TruncatedNewton
from hesse.optimize.trust_radius import TrustRadius
from hesse.progress import Callback, asks_to_stop, progress_bar
from hesse.vectors.space import Tree


@public("hesse.minimize(f, x0, method={method})")
def minimize(
    f: Callable[[Any], Tensor],
    x0: Tree,
    method: Literal["newton-cg", "trust-cg"] = "newton-cg",
    *,
    curvature: Literal["hessian", "ggn"] = "hessian",
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    max_cg_iterations: int = 500,
    preconditioner: LinearOperator | None = None,
    mode: HessianMode = "auto",
    callback: Callback | None = None,
    progress: bool = False,
) -> OptimizeResult:
    r"""Minimise a smooth function by a Newton method with conjugate gradients inside.

    $$ x_{k+1} = x_k + t_k p_k, \qquad \lVert H_k p_k + g_k \rVert \le \eta_k \lVert g_k \rVert $$

    Args:
        f: scalar function of one argument, or a `Risk`.
        x0: where to start: a tensor or a tree of tensors. Use float64 for high accuracy.
        method: "newton-cg", truncated Newton steps with a line search; or "trust-cg", within a
            trust radius (Steihaug), which is more robust where the Hessian is indefinite.
        curvature: "hessian", or "ggn" for the Gauss-Newton matrix of a `Risk`.
        rtol, atol: success when |grad f| <= max(rtol |grad f(x0)|, atol); rtol defaults to 1e-8 in
            float64, 1e-4 in float32.
        max_iterations: of the outer iteration.
        max_cg_iterations: of each inner solve.
        preconditioner: symmetric positive definite approximation of the inverse curvature.
        mode: how Hessian products are computed, see `hessian_operator`.
        callback: called with an `Iteration` (number, value, gradient_norm, point) after every step;
            a true result stops the minimisation.
        progress: show a bar.

    Returns:
        OptimizeResult. No error is raised without convergence: look at `success` and `message`.
        Ctrl-C returns the best point so far, with status INTERRUPTED.

    Cost: an iteration takes one value and one gradient, a value for each backtracking, and one
        product for each step of CG; two gradients each. Memory: about ten vectors and the graph of
        the gradient. Convergence near a minimum with positive definite Hessian is superlinear.

    Raises:
        HesseError: f is not finite at x0, or as in `hessian_operator`.

    References: Nocedal & Wright 2006, algorithms 7.1 and 7.2; Eisenstat & Walker 1996,
        doi:10.1137/0917003.

    >>> result = minimize(lambda x: ((x - 1.0) ** 4).sum(), torch.zeros(2, dtype=torch.float64))
    >>> result.success, bool((result.x - 1.0).abs().max() < 1e-2)
    (True, True)
    """
    check_choice("method", method, ("newton-cg", "trust-cg"))
    check_choice("curvature", curvature, ("hessian", "ggn"))
    if curvature == "hessian":
        objective = Objective(hessian_operator(f, x0, mode=mode))
    else:
        objective = Objective(ggn_operator(f, x0))
    start = objective.start(objective.space.flatten(x0, what="x0").clone())
    if start.value == float("inf"):
        raise NonFiniteError(
            expected="a finite f(x0)",
            got="NaN or Inf",
            remedy="Start at a point where f is finite.",
        )
    if rtol is None:
        rtol = 1e-8 if objective.space.dtype == torch.float64 else 1e-4
    tolerance = max(rtol * start.gradient_norm, atol)
    descent = TruncatedNewton(
        gradient_tolerance=tolerance,
        max_iterations=max_cg_iterations,
        preconditioner=preconditioner,
    )
    search: Search = ArmijoSearch() if method == "newton-cg" else TrustRadius(start)
    states = iterate(
        objective, start, descent, search, tolerance=tolerance, max_iterations=max_iterations
    )
    return _follow(states, objective, callback, progress, method)


def _follow(
    states: Iterator[Iteration],
    objective: Objective,
    callback: Callback | None,
    progress: bool,
    title: str,
) -> OptimizeResult:
    """Run the loop to its end, with callback and progress bar."""
    history: list[tuple[float, float]] = []
    first = state = next(states)
    status = Status.UNFINISHED
    with progress_bar(progress, title) as bar:
        try:
            for state in itertools.chain([first], states):
                history.append((state.value, state.gradient_norm))
                bar.set_postfix_str(f"f {state.value:.6g}, |g| {state.gradient_norm:.2e}")
                bar.update(state.number > 0)
                status = state.status
                if status is Status.UNFINISHED and asks_to_stop(callback, state):
                    status = Status.STOPPED
                    break
        except KeyboardInterrupt:
            status = Status.INTERRUPTED
    return OptimizeResult(
        x=objective.space.unflatten(state.point.x),
        success=status is Status.CONVERGED,
        status=status,
        message=status.value,
        fun=state.value,
        jac=objective.space.unflatten(state.point.gradient),
        nit=state.number,
        nfev=objective.counts.nfev,
        njev=objective.counts.njev,
        nhev=objective.counts.nhev,
        history=history,
    )
