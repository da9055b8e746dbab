# SPDX-License-Identifier: Apache-2.0
"""`least_squares`: fit a model by the squares of its residuals, or by a robust loss of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import Checkpoint
from hesse.curvature.jacobian import jacobian_operator, shared_jacobian
from hesse.curvature.operator import CurvatureOperator
from hesse.engine.options import ProductOptions
from hesse.errors import (
    ArgumentError,
    FunctionError,
    Status,
    check_choice,
    check_count,
    check_has_variables,
    check_tolerances,
    kind_of,
)
from hesse.operators.diagonal import DiagonalOperator
from hesse.optimize.box import Box
from hesse.optimize.fixed_mode import in_fixed_mode
from hesse.optimize.point import Counts
from hesse.optimize.run_to_end import run_to_end
from hesse.optimize.squares.covariance import Covariance, dense_covariance, large_covariance
from hesse.optimize.squares.fit import Fit, FitState, Tolerances
from hesse.optimize.squares.radius_search import CAREFUL, LONG
from hesse.optimize.squares.residual_point import Residuals
from hesse.optimize.squares.result import LeastSquaresResult
from hesse.optimize.squares.risk_residuals import residuals_here, residuals_of
from hesse.optimize.squares.robust_loss import Rho, RobustLoss
from hesse.optimize.squares.shared_residuals import SharedResiduals
from hesse.progress import Callback, FilePath, Run
from hesse.ranks import Ranks, check_same_checkpoint
from hesse.risk.risk import Risk
from hesse.vectors.entries import entries
from hesse.vectors.space import Space, Tree

# Jacobians of up to so many entries, and so long a shorter side, are matrices by default.
_MOST_ENTRIES, _LONGEST_SIDE = 1 << 22, 1000


@public("hesse.least_squares(r, x0, method={method})")
def least_squares(
    r: Callable[[Any], Any] | Risk | tuple[Callable[[Any], Any], Callable[[Any], Tensor]],
    x0: Tree,
    method: Literal["auto", "svd", "svd-long", "lsmr"] = "auto",
    *,
    loss: Literal["linear", "huber", "soft_l1", "cauchy", "arctan"] | Rho = "linear",
    f_scale: float = 1.0,
    bounds: tuple[Any, Any] | None = None,
    x_scale: Literal["auto", "jac"] | float | Tree = "auto",
    ftol: float = 1e-8,
    xtol: float = 1e-8,
    gtol: float = 1e-8,
    max_iterations: int = 1000,
    max_seconds: float | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> LeastSquaresResult:
    r"""Minimise a sum of squares, or of robust losses, of residuals by a trust-region method.

    $$ \min_{l \le x \le u} \; \tfrac{C^2}{2} \sum_i \rho\bigl(r_i(x)^2 / C^2\bigr), \qquad
       p_k = \arg\min_{\lVert D^{-1} p \rVert \le \Delta_k} \lVert r_k + J_k p \rVert $$

    Args:
        r: function of one argument whose result, the residuals, is a tensor or a tree of tensors;
            for weights multiply the residuals by their roots. Or a `Risk` with the loss
            `nn.MSELoss()`, whose value is then the cost; all batches are evaluated together. Or a
            pair (r, J), where J(x) is the matrix of shape (m, n) and there is a faster way to it
            than a backward pass a residual: where each residual depends on one example,
            `torch.func.vmap(torch.func.grad(...))` takes a few passes in all. The first matrix is
            compared with a product.
        x0: where to start: a tensor or a tree of tensors. Use float64 for high accuracy.
        method: how J is taken. "svd": as a matrix, by its singular value decomposition; "svd-long":
            likewise, with longer steps, for networks of a PDE; "lsmr": by products alone, with the
            bidiagonalisation of LSMR; "auto": "svd" for up to 4 million entries and 1000 on the
            shorter side.
        loss: rho. "linear", z; "huber", z up to 1 and 2 sqrt(z) - 1 above; "soft_l1",
            2 (sqrt(1 + z) - 1); "cauchy", log(1 + z); "arctan", arctan z; or a function of a tensor
            z, entry by entry.
        f_scale: C, about the size of a residual that is no outlier.
        bounds: (l, u), each a number or a tree like x0; None where there is no bound. A number in
            a tree is that of a whole leaf.
        x_scale: D, the size of the variables: a number or a tree like x0; "jac", one over the
            largest norm so far of each column of J (method "svd"); "auto", "jac" or else 1.
        ftol: a full step that lowers the cost by at most ftol times it, as predicted, is the last.
        xtol: so is a step after which the Gauss-Newton step is at most xtol |x|, in the units of D.
        gtol: the cosine of the angle between the residuals and each column of J is small (for
            "lsmr" that of the gradient). Unlike SciPy's, it does not depend on the units of r.
        max_iterations: of steps.
        max_seconds: limit of the whole fit, kept within the bidiagonalisation.
        callback: called with an `Iteration` (number, x, value, gradient_norm, products) after
            every step; a true result stops the fit.
        progress: show a bar.
        checkpoint: path of a file to which the state is saved after a step, and from which the same
            call continues, to the same bits, after it was killed (see `hesse.checkpoint`).

    One factorisation of J gives the best step for every trust radius, by its singular values and
    without J'J (in float32 by J'J in float64, which has all digits of it). Of a matrix with 400
    rows and columns or more only those are computed that the radius asks for, if they are few; a
    step is then off by at most a tenth of its length. Several radii are tried, and picked by the
    true cost, before J is computed at another point; "svd-long" takes the longest step for which
    the cost falls by 15 % of what the model says. With "svd" a step is bent along the curvature of
    r, and where three steps in a row lower the cost by less than 5 %, as where residuals stay
    large, the Hessian of the cost is the model, with the second derivatives of r,
    for up to 300 variables. Variables at a bound that the gradient pushes outwards are held; steps
    are projected onto the bounds. A trial point at which r is not finite, or raises an
    ArithmeticError, ValueError or RuntimeError, is rejected.

    Returns:
        LeastSquaresResult with the best point and the covariance of the estimate. No error is
        raised without convergence: look at `success` and `message`. The status is CONVERGED,
        STAGNATED (no step lowers the cost, although J promises it), a limit, STOPPED, or
        INTERRUPTED by Ctrl-C. The point is stationary: a minimum, or in rare cases a saddle point.

    Cost: an iteration takes J once and r a few times. "svd": J costs as many backward passes as
        there are residuals, or forward ones as there are variables, vectorised; its decomposition
        m n^2 operations, or 4 m n k for k singular values. "lsmr": two products a step of the
        bidiagonalisation, and a vector of n for each (1 GB of them at most, or 30).

    Raises:
        HesseError: r is not finite at x0; x0 out of bounds; "jac" without a matrix; or as in
            `jacobian_operator`. What r raises at x0.

    References: Dennis, Gay & Welsch 1981, doi:10.1145/355958.355965; More 1978,
        doi:10.1007/BFb0067700; Fong & Saunders 2011, doi:10.1137/10079687X; Triggs et al. 2000,
        doi:10.1007/3-540-44480-7_21; Bertsekas 1982, doi:10.1137/0320018.

    >>> t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> y = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)
    >>> x0 = torch.ones(2, dtype=torch.float64)
    >>> result = least_squares(lambda x: x[0] * torch.exp(-x[1] * t) - y, x0)
    >>> result.success, [round(value, 4) for value in result.x.tolist()]     # 2 and log 2
    (True, [2.0, 0.6931])
    """
    check_choice("method", method, ("auto", "svd", "svd-long", "lsmr"))
    check_count("max_iterations", max_iterations, 0)
    check_tolerances(ftol=ftol, xtol=xtol, gtol=gtol)
    robust = RobustLoss(loss, f_scale)
    limits = Run(
        "least_squares",
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    given, jac = r if isinstance(r, tuple) else (r, None)
    ranks = given.ranks if isinstance(given, Risk) else None
    function: Any = _as_function(given)
    check_same_checkpoint(ranks, limits.checkpoint)
    start = _jacobian(function, x0, ranks, is_fixed=checkpoint is not None)
    space = start.domain
    check_has_variables(space.n)
    if ranks is None and start.codomain.n == 0:
        raise FunctionError(
            expected="r(x0) with at least one residual",
            got="none",
            remedy="Leave out what has no data.",
        )
    x = space.flatten(x0, what="x0").clone()
    space.check_finite(x, "x0")
    is_dense = method in ("svd", "svd-long") or (
        method == "auto" and (jac is not None or _is_small(start))
    )
    if jac is not None and (ranks is not None or not is_dense):
        raise ArgumentError(
            expected="r alone with method 'lsmr', and for a risk with group=",
            got="a pair of functions",
            remedy="Give r, or take method='svd' in one process.",
        )
    box = _box(bounds, space, x)
    scale, adapts = _scale(x_scale, space, is_dense=is_dense)
    if ranks is None:
        residuals = Residuals(function, start, robust, is_dense=is_dense, jac=jac)
    else:
        residuals = SharedResiduals(function, start, robust, is_dense=is_dense)
    x, scale = residuals.as_in_fit(x, scale)
    box = None if box is None else Box(*residuals.as_in_fit(box.lower, box.upper))
    # r and a constant have the same Jacobian.
    at_start = None
    if checkpoint is not None:
        at_start = DiagonalOperator(residuals.codomain, residuals.value(x))
    file = Checkpoint(
        limits.checkpoint,
        # A state has vectors of x alone.
        residuals.start if ranks is None else residuals.start.T @ residuals.start,
        residuals=at_start,
        function="least_squares",
        method=method if method != "auto" else "svd" if is_dense else "lsmr",
        loss=loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__),
        f_scale=f_scale,
        tolerances=[ftol, xtol, gtol],
        x0=x,
        x_scale=scale,
        lower=None if box is None else box.lower,
        upper=None if box is None else box.upper,
    )
    state = FitState(x, residuals.counts, scale)
    if file.resume(state):
        residuals.counts, residuals.products = state.counts, state.products
        state.status = Status.UNFINISHED if state.status is not Status.CONVERGED else state.status
    fit = Fit(
        residuals,
        state,
        box=box,
        tolerances=Tolerances(ftol, xtol, gtol),
        limits=limits,
        max_iterations=max_iterations,
        adapts_scale=adapts,
        checkpoint=file,
        rule=LONG if method == "svd-long" else CAREFUL,
    )
    return _result(fit, run_to_end(fit, limits, ranks))


def _as_function(r: Any) -> Callable[[Any], Any] | None:
    """The function that gives residuals, of several ranks those of this one."""
    if isinstance(r, Risk):
        return residuals_of(r) if r.ranks is None else residuals_here(r)
    if not callable(r):
        raise FunctionError(
            expected="r to be a function of x",
            got=kind_of(r),
            remedy="Give a function that returns the residuals.",
        )
    return r


def _jacobian(r: Any, x0: Tree, ranks: Ranks | None, *, is_fixed: bool) -> CurvatureOperator:
    """The Jacobian at x0, in one mode throughout for a run that resumes to the same bits."""

    def make(mode: Any) -> CurvatureOperator:
        if ranks is None:
            return jacobian_operator(r, x0, mode=mode)
        return shared_jacobian(ranks, r, x0, ProductOptions(mode), what="x0")

    return in_fixed_mode(make, ["retained-graph"])[0] if is_fixed else make("auto")


def _is_small(J: CurvatureOperator) -> bool:
    rows, columns = J.shape
    return rows * columns <= _MOST_ENTRIES and min(rows, columns) <= _LONGEST_SIDE


def _scale(x_scale: Any, space: Space, *, is_dense: bool) -> tuple[Tensor, bool]:
    """D, and whether it follows the columns of the Jacobian."""
    ones = torch.ones_like(space.zeros())
    if isinstance(x_scale, str):
        check_choice("x_scale", x_scale, ("auto", "jac"))
        if x_scale == "jac" and not is_dense:
            raise ArgumentError(
                expected="x_scale to be numbers for method 'lsmr'",
                got="'jac', which needs the columns of the Jacobian",
                remedy="Give the typical size of every variable, a tree like x0.",
            )
        return ones, is_dense
    scale = entries(x_scale, space, "x_scale")
    if space.any(~((scale > 0) & (scale < torch.inf))):
        raise ArgumentError(
            expected="x_scale > 0 and finite",
            got="an entry that is not",
            remedy="Give the typical size of every variable; 1 where it is not known.",
        )
    return scale, False


def _box(bounds: Any, space: Space, x: Tensor) -> Box | None:
    """The bounds, None for none; raises unless x is within them."""
    box = None if bounds is None else Box.of(bounds, space)
    if box is not None and space.any(box.project(x) != x):
        raise ArgumentError(
            expected="x0 within the bounds",
            got="an entry outside of them",
            remedy="Start from x0.clamp(lower, upper).",
        )
    return box


def _result(fit: Fit, status: Status) -> LeastSquaresResult:
    residuals, point, state, space = fit.residuals, fit.point, fit.state, fit.space
    box = fit.box or Box(space.zeros() - torch.inf, space.zeros() + torch.inf)
    covariance = _covariance(fit)
    errors = covariance.standard_errors
    counts = residuals.counts
    return LeastSquaresResult(
        x=residuals.as_given(point.x),
        cost=point.cost,
        fun=residuals.tree(point.r),
        jac=point.operator,
        grad=residuals.as_given(point.gradient),
        optimality=fit.optimality,
        active_mask=residuals.as_given(box.active(point.x).to(space.dtype)),
        nfev=counts.nfev,
        njev=counts.njev,
        nhev=counts.nhev,
        nit=state.number,
        products=residuals.products,
        status=status,
        message=_message(status, state, counts),
        success=status is Status.CONVERGED,
        covariance=covariance.operator,
        standard_errors=None if errors is None else residuals.as_given(errors),
        rank=covariance.rank,
        history=[(cost, optimality) for cost, optimality in state.history],
    )


def _covariance(fit: Fit) -> Covariance:
    point = fit.point
    held = None if fit.box is None else ~fit.box.inside(point.x)
    if not fit.residuals.is_dense:
        return large_covariance(point.operator, point.cost, held)
    return dense_covariance(fit.residuals.given, point.matrix, point.cost, fit.state.scale, held)


def _message(status: Status, state: FitState, counts: Counts) -> str:
    """Why the fit ended, and what r raised."""
    text = f"Converged: {state.reason}" if status is Status.CONVERGED else status.value
    return counts.told(text, "r")
