# SPDX-License-Identifier: Apache-2.0
"""`minimize`: a smooth function of many variables, to high accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public, warn
from hesse.checkpoint import Checkpoint
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import HessianMode, hessian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_hessian import sparse_hessian_operator
from hesse.errors import (
    NonFiniteError,
    Status,
    check_choice,
    check_count,
    check_has_variables,
    check_tolerances,
)
from hesse.krylov.preconditioners.choose import on_space
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.box import Box
from hesse.optimize.certificate import Certificate
from hesse.optimize.criterion import Criterion
from hesse.optimize.cubic import Cubic
from hesse.optimize.enriched import Enriched
from hesse.optimize.factory import Factory, made, name_of
from hesse.optimize.fixed_mode import in_fixed_mode
from hesse.optimize.lbfgs import LBFGS
from hesse.optimize.loop import Minimisation, MinimizeState
from hesse.optimize.method import MinimizeMethod, Setting
from hesse.optimize.newton_direct import NewtonDirect
from hesse.optimize.newton_minres import NewtonMINRES
from hesse.optimize.point import Counts, Objective, Point
from hesse.optimize.proposal import LoopDescent, LoopSearch
from hesse.optimize.result import OptimizeResult
from hesse.optimize.run_to_end import run_to_end
from hesse.optimize.truncated_newton import NewtonCG, TrustCG
from hesse.optimize.trust_krylov import TrustKrylov
from hesse.progress import Callback, FilePath, Run
from hesse.ranks import Ranks, alike, share_run_of
from hesse.vectors.space import Space, Tree

MethodName = Literal[
    "auto",
    "enriched",
    "newton-cg",
    "trust-cg",
    "trust-krylov",
    "cubic",
    "lbfgs",
    "newton-minres",
    "newton-direct",
]

_ALL = (
    Enriched(), NewtonCG(), TrustCG(), TrustKrylov(), Cubic(), LBFGS(), NewtonMINRES(),
    NewtonDirect(),
)  # fmt: skip
METHODS: dict[str, MinimizeMethod] = {
    "auto": Enriched(),
    **{method.name: method for method in _ALL},
}
"""The methods by name, with their default options."""


@public("hesse.minimize(f, x0, method={method})")
def minimize(
    f: Callable[[Any], Tensor],
    x0: Tree,
    method: MethodName | MinimizeMethod = "auto",
    *,
    bounds: Any = None,
    curvature: Literal["hessian", "ggn"] | Factory = "hessian",
    rtol: float | None = None,
    atol: float = 0.0,
    max_iterations: int = 1000,
    max_products: int | None = None,
    max_seconds: float | None = None,
    preconditioner: LinearOperator | Tensor | None = None,
    mode: HessianMode = "auto",
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> OptimizeResult:
    r"""Minimise a smooth function by a Newton method, to a point that is certified as a minimum.

    $$ x_{k+1} = x_k + p_k, \qquad p_k \approx \arg\min_p\; g_k^T p + \tfrac12 p^T H_k p $$

    Args:
        f: scalar function of one argument, or a `Risk`.
        x0: where to start: a tensor or a tree of tensors. Use float64 for high accuracy.
        method: a name, or an object with options, such as `TrustKrylov(max_inner_iterations=100)`:
            "enriched", L-BFGS while it is fast, else Newton steps within a trust radius;
            "newton-cg", truncated Newton steps with a line search; "trust-cg", within a trust
            radius; "trust-krylov", minima within a trust radius on a Krylov space; "cubic", with
            cubic regularisation; "newton-minres", for singular Hessians; "newton-direct", which
            factorises a sparse Hessian; "lbfgs", which takes no products; "auto", enriched, but
            with another `curvature` newton-cg, and trust-cg within bounds if there is another
            `curvature` or a preconditioner.
        bounds: a pair (lower, upper) of numbers, tensors or trees like x0, or None, or a
            `scipy.optimize.Bounds`, or for a flat x0 a list of pairs (low, high), one for each
            variable; a number in a tree bounds a whole leaf. With "auto", "enriched", "lbfgs" and
            "trust-cg". f is evaluated within them only; an x0 outside of them is projected, with a
            warning. The gradient is then, in all that follows, the projected one: without what
            would move a variable out of its bound. The curvature is that of the variables that are
            free.
        curvature: "hessian", "ggn" for the Gauss-Newton matrix of a `Risk`, or a function of f and
            x that returns a symmetric operator, such as `fisher_operator` or
            `lambda risk, x: hesse.kfac_operator(risk, x, damping=0.1)`. Value and gradient are
            those of f. An operator whose structure gives its inverse takes no CG.
        rtol, atol: the gradient is small when |grad f| <= max(rtol |grad f(x0)|, atol). rtol also
            bounds |grad f| itself, by max(rtol, 1e-8) (1e-4 in float32), so that a large gradient
            at a bad x0 does not loosen the test. Default: rtol 1e-8 in float64 and 1e-4 in
            float32; a gradient that is zero up to rounding is then small too.
        max_iterations: of the outer iteration.
        max_products, max_seconds: limits of the whole minimisation, kept within the inner solves.
        preconditioner: symmetric positive definite approximation of the inverse curvature.
        mode: how Hessian products are computed, see `hessian_operator`.
        callback: called with an `Iteration` (number, value, gradient_norm, point, products) after
            every step; a true result stops the minimisation.
        progress: show a bar.
        checkpoint: path of a file to which the state is saved after a step, and from which the same
            call continues, to the same bits, after it was killed (see `hesse.checkpoint`; one
            or two products more to recognise f). "auto" then stands for one mode throughout:
            "retained-graph", or the next one that works. Steps are the same only if f is.

    A point with a small gradient is a minimum only if no negative curvature is found there. A
    Lanczos process looks for some: n products if that is at most 10 or a tenth of those so far,
    else as many as that, which finds curvature down to about -2 / products^2 of the largest. Where
    it is negative, or zero up to rounding, and f is lower to either side, the minimisation goes on
    from there. With a sparse Hessian, as "newton-direct" takes it, the pivots of its factors tell
    the sign of every eigenvalue. With rtol the model's decrease must be negligible as well, see
    `Criterion`.

    A trial point at which f is not finite, or raises an ArithmeticError, ValueError or RuntimeError
    (as for a matrix that is not positive definite), is rejected; `message` tells how many raised.

    Returns:
        OptimizeResult with the best point. No error is raised without convergence: look at
        `success` and `message`. The status is CONVERGED, SADDLE_POINT (negative curvature, and no
        lower value along it), UNBOUNDED (f falls without end), STAGNATED, NOT_FINITE (at the best
        point a product is not), a limit, STOPPED, or INTERRUPTED by Ctrl-C.

    Cost: an iteration takes one gradient, one value or a few, and the products that the method
        says, two gradients each. The certificate at the end takes a tenth of the products so far,
        or 10. Memory: the vectors that the method says, ten without a basis; a vector for each
        product of the certificate (1 GB of them at most, or 10); the graph of the gradient. For
        10^7 variables that is less than 60 vectors. Convergence near a minimum with positive
        definite Hessian is superlinear, but with "lbfgs".

    Raises:
        HesseError: f is not finite at x0, or as in `hessian_operator`. What f raises at x0.

    References: Nocedal & Wright 2006, algorithms 7.1 and 7.2; Eisenstat & Walker 1996,
        doi:10.1137/0917003.

    >>> import torch
    >>> result = minimize(lambda x: ((x - 1.0) ** 4).sum(), torch.zeros(2, dtype=torch.float64))
    >>> result.success, bool((result.x - 1.0).abs().max() < 1e-2)
    (True, True)
    """
    chosen = find_method(method, METHODS, "compose")
    box, x0 = _box(bounds, x0, getattr(f, "ranks", None))
    if method == "auto":
        chosen = _default(box, curvature, preconditioner)
    chosen.check_bounds(box)
    if not callable(curvature):
        check_choice("curvature", curvature, ("hessian", "ggn"))
    curvature = chosen.hessian if curvature == "hessian" else curvature
    check_count("max_iterations", max_iterations, 0)
    check_tolerances(rtol=0.0 if rtol is None else rtol, atol=atol)
    limits = Run(
        "minimize",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    share_run_of(limits, getattr(f, "ranks", None))
    start = _operator(f, x0, curvature, mode, is_fixed=checkpoint is not None)
    check_has_variables(start.domain.n)
    run_key = {
        "method": repr(chosen),
        "curvature": name_of(curvature),
        "rtol": rtol,
        "atol": atol,
        "x0": start.domain.flatten(x0, what="x0"),
        # Of infinite entries there is no fingerprint.
        "lower": None if box is None else torch.atan(box.lower),
        "upper": None if box is None else torch.atan(box.upper),
        # f with a linear term has the same Hessian.
        "gradient": None if checkpoint is None else _diagonal(start),
    }
    M = None if preconditioner is None else on_space(preconditioner, start.domain)
    file = Checkpoint(limits.checkpoint, start, function="minimize", **run_key, preconditioner=M)
    counts = Counts()
    matrix = _Maker(curvature, f, start.domain, counts) if callable(curvature) else None
    at_x0 = start if checkpoint is None else start.at(x0)
    objective = Objective(at_x0, counts, matrix, box)
    setting = Setting(
        M,
        lambda: limits.rest(objective.counts.nhev),
        lambda x: objective.point(x).curvature,
        box,
    )
    descent, search = chosen.compose(setting)
    state, point, best = _start(objective, x0, file, descent, search)
    criterion = Criterion(
        rtol, atol, objective.space.dtype, state.start_value, state.start_gradient_norm
    )
    exact = None if curvature in ("hessian", sparse_hessian_operator) else f
    minimisation = Minimisation(
        objective,
        state,
        point,
        best,
        descent=descent,
        search=search,
        certificate=Certificate(objective, criterion, partial(_hessian, exact), limits),
        limits=limits,
        max_iterations=max_iterations,
        checkpoint=file,
    )
    del point, best  # else the factors at x0 would be held until the end
    return _run(minimisation, limits)


def _diagonal(start: CurvatureOperator) -> LinearOperator:
    """The gradient as an operator, for a checkpoint to recognise."""
    return DiagonalOperator(start.domain, start.flat_gradient)


def _default(box: Box | None, curvature: Any, preconditioner: Any) -> MinimizeMethod:
    """What "auto" takes: what was given is there to be used."""
    if box is not None and (curvature != "hessian" or preconditioner is not None):
        return TrustCG()
    return METHODS["auto"] if curvature == "hessian" else NewtonCG()


def _box(bounds: Any, x0: Tree, ranks: Ranks | None) -> tuple[Box | None, Tree]:
    """The bounds, if there are some, and x0 within them."""
    if bounds is None:
        return None, x0
    with alike(ranks):
        space = Space.of(x0, what="x0", ranks=ranks)
    box, x = Box.of(bounds, space), space.flatten(x0, what="x0")
    projected = box.project(x)
    moved = space.norm(projected - x)
    if not moved > 0.0:
        return box, x0
    warn(f"x0 is outside of the bounds; the start is {moved:.3g} away, within them.")
    return box, space.unflatten(projected)


# The modes that one of a fixed kind is taken from, the first that works.
_FIXED = {
    "hessian": ["retained-graph", "forward-over-reverse", "finite-difference"],
    "ggn": ["retained-graph"],
}


def _operator(
    f: Any, x0: Tree, curvature: str | Factory, mode: HessianMode, *, is_fixed: bool
) -> CurvatureOperator:
    """The operator at x0 that gives value and gradient, and the curvature unless that is made.

    In one mode throughout for a run that resumes to the same bits.
    """
    kind = curvature if isinstance(curvature, str) else "hessian"
    make: Any = hessian_operator if kind == "hessian" else ggn_operator
    if not is_fixed:
        return make(f, x0, mode=mode)
    modes = _FIXED[kind] if mode == "auto" else [mode]
    return in_fixed_mode(lambda fixed: make(f, x0, mode=fixed), modes)[0]


class _Maker:
    """x -> the curvature that a factory makes there; raises unless it fits.

    The pattern and the colouring of a sparse Hessian serve at every point. Its entries are counted
    as the products that they cost.
    """

    def __init__(self, factory: Factory, f: Any, space: Space, counts: Counts) -> None:
        self._factory, self._f, self._space, self._counts = factory, f, space, counts
        self._sparse: Any = None

    def __call__(self, x: Tree) -> LinearOperator:
        if self._factory is not sparse_hessian_operator:
            return made(self._factory, self._f, self._space, x)
        last = self._sparse
        there: Any = made(self._factory, self._f, self._space, x) if last is None else last.at(x)
        self._sparse = there  # the last one holds factors, which may take much memory
        self._counts.nhev += there.cost
        self._counts.per_curvature = there.cost
        return there


def _start(
    objective: Objective, x0: Tree, file: Checkpoint, descent: LoopDescent, search: LoopSearch
) -> tuple[MinimizeState, Point, Point]:
    """The state at x0 or that of the file, with its present and its best point."""
    space = objective.space
    x = space.flatten(x0, what="x0").clone()
    state = MinimizeState(x, x, objective.counts, search=search.state, descent=descent.state)
    if file.resume(state):
        counts = dict(vars(state.counts))
        best = objective.point(state.best_x)
        point = best if not space.any(state.x != state.best_x) else objective.point(state.x)
        if best.is_usable and point.is_usable:  # which computes their values and gradients
            for is_made, there in (state.has_curvature, point), (state.best_has_curvature, best):
                if is_made:
                    _ = there.curvature
            vars(state.counts).update(counts)
        return state, point, best
    start = objective.start(x)
    is_finite = start.value < math.inf
    if not (is_finite and math.isfinite(start.gradient_norm)):  # NaN in the gradient raises
        raise NonFiniteError(
            expected=f"a finite {'|grad f(x0)|' if is_finite else 'f(x0)'}",
            got="NaN or Inf",
            remedy="Start at a point where f is finite.",
        )
    state.start_value, state.start_gradient_norm = start.value, start.gradient_norm
    state.start_norm = space.norm(x)
    search.begin(start, descent)
    return state, start, start


def _hessian(f: Any, point: Point) -> LinearOperator:
    """The Hessian at a point: its own curvature, unless that is another matrix of f."""
    if f is None:
        return point.curvature
    return point.counted(hessian_operator(f, point.space.unflatten(point.x)))


def _run(minimisation: Minimisation, limits: Run) -> OptimizeResult:
    """Run the loop to its end."""
    status = run_to_end(minimisation, limits)
    state, best, space = minimisation.state, minimisation.best, minimisation.objective.space
    return OptimizeResult(
        x=space.unflatten(best.x),
        success=status is Status.CONVERGED,
        status=status,
        message=state.counts.told(status.value, "f"),
        fun=best.value,
        jac=space.unflatten(best.gradient),
        nit=state.number,
        nfev=state.counts.nfev,
        njev=state.counts.njev,
        nhev=state.counts.nhev,
        min_curvature=state.min_curvature,
        history=[(value, norm) for value, norm in state.history],
    )
