# SPDX-License-Identifier: Apache-2.0
"""Callables of the form that `scipy.optimize.minimize(method=)` takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import Bounds, OptimizeResult
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, DerivativeError, FunctionError, Status, kind_of
from hesse.optimize.loop import Iteration
from hesse.optimize.method import MinimizeMethod
from hesse.optimize.minimize import METHODS, minimize
from hesse.scipy.numpy_function import VALUE, NumPyFunction

# SciPy's names of options, and Hesse's.
_RENAMED = {"maxiter": "max_iterations", "disp": "progress"}
_OPTIONS = {
    "rtol", "atol", "max_iterations", "max_products", "max_seconds", "preconditioner", "progress",
    "checkpoint", "curvature",
}  # fmt: skip


def enriched(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.Enriched` as a method of SciPy, which takes bounds; see `trust_krylov`.

    >>> from scipy.optimize import minimize, rosen
    >>> minimize(lambda x: (x - 1).square().sum(), [0.0, 0.0], method=enriched).x
    array([1., 1.])
    """
    return _minimize("enriched", fun, x0, **arguments)


def newton_cg(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.NewtonCG` as a method of SciPy; see `trust_krylov`.

    >>> from scipy.optimize import minimize, rosen
    >>> minimize(lambda x: (x - 1).square().sum(), [0.0, 0.0], method=newton_cg).x
    array([1., 1.])
    """
    return _minimize("newton-cg", fun, x0, **arguments)


def trust_cg(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.TrustCG` as a method of SciPy, which takes bounds; see `trust_krylov`.

    >>> from scipy.optimize import minimize
    >>> f = lambda x: (x - 1).square().sum()
    >>> minimize(f, [0.0, 0.0], method=trust_cg, bounds=[(None, 0.5), (None, None)]).x
    array([0.5, 1. ])
    """
    return _minimize("trust-cg", fun, x0, **arguments)


def trust_krylov(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.TrustKrylov` as a method of SciPy.

    Args:
        fun: function of a NumPy array; without `jac` a function of a float64 tensor, which is
            differentiated.
        x0: where to start.
        arguments: what `scipy.optimize.minimize` passes: args, jac, hess, hessp, bounds, callback
            and the options. Without `hess` and `hessp` products are differences of gradients.
            At each point two more values and gradients, and a product, check that `hess` or `hessp`
            is the derivative of `jac`; `nfev`, `njev` and `nhev` do not count them. Whether `jac`
            is that of `fun` is not checked: see `scipy.optimize.check_grad`.
            Options: gtol (of |grad f|), maxiter, disp, those of the method, such as
            max_inner_iterations, and those of `hesse.minimize`: rtol, atol, max_products,
            max_seconds, preconditioner, progress, checkpoint, curvature.

    Returns:
        SciPy's OptimizeResult, with `min_curvature`: the smallest Ritz value of the Hessian at x.

    Raises:
        HesseError: constraints were given; an option that there is not; as in `hesse.minimize`.

    >>> from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod
    >>> start = [-1.2, 1.0, 0.5]
    >>> r = minimize(rosen, start, jac=rosen_der, hessp=rosen_hess_prod, method=trust_krylov)
    >>> r.success, r.x.round(6)
    (True, array([1., 1., 1.]))
    """
    return _minimize("trust-krylov", fun, x0, **arguments)


def cubic(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.Cubic` as a method of SciPy; see `trust_krylov`.

    >>> from scipy.optimize import minimize
    >>> minimize(lambda x: (x - 1).square().sum(), [0.0, 0.0], method=cubic).x.round(6)
    array([1., 1.])
    """
    return _minimize("cubic", fun, x0, **arguments)


def lbfgs(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.LBFGS` as a method of SciPy, which takes bounds; see `trust_krylov`.

    >>> from scipy.optimize import minimize
    >>> minimize(lambda x: (x - 1).square().sum(), [0.0, 0.0], method=lbfgs).x.round(6)
    array([1., 1.])
    """
    return _minimize("lbfgs", fun, x0, **arguments)


def newton_minres(fun: Callable, x0: Any, **arguments: Any) -> OptimizeResult:
    """`hesse.NewtonMINRES` as a method of SciPy; see `trust_krylov`.

    >>> from scipy.optimize import minimize
    >>> minimize(lambda x: (x - 1).square().sum(), [0.0, 0.0], method=newton_minres).x
    array([1., 1.])
    """
    return _minimize("newton-minres", fun, x0, **arguments)


@public("scipy.optimize.minimize(fun, x0, method={name})")
def _minimize(
    name: str,
    fun: Callable,
    x0: Any,
    *,
    args: tuple = (),
    jac: Any = None,
    hess: Any = None,
    hessp: Any = None,
    bounds: Any = None,
    constraints: Any = (),
    callback: Callable | None = None,
    **options: Any,
) -> OptimizeResult:
    if constraints:
        raise ArgumentError(
            expected="no constraints but bounds",
            got=f"{constraints!r}"[:100],
            remedy="Use method='trust-constr' of SciPy.",
        )
    start = torch.tensor(np.asarray(x0, dtype=np.float64).reshape(-1))
    function, mode = _function(fun, jac, hess, hessp, args)
    method, chosen = _options(name, options)
    with _in_words_of_scipy():
        result = minimize(
            function, start, method,
            bounds=_bounds(bounds, len(start)), mode=mode, callback=_callback(callback), **chosen,
        )  # fmt: skip
    return OptimizeResult(
        x=result.x.numpy(),
        success=result.success,
        status=0 if result.success else list(Status).index(result.status) + 1,
        message=result.message,
        fun=result.fun,
        jac=result.jac.numpy(),
        nit=result.nit,
        nfev=result.nfev,
        njev=result.njev,
        nhev=result.nhev,
        min_curvature=result.min_curvature,
    )


@contextmanager
def _in_words_of_scipy() -> Iterator[None]:
    """Within it, products that are not those of the gradient name the functions that were given."""
    try:
        yield
    except DerivativeError as error:
        if VALUE not in error.got:
            raise
        raise DerivativeError(
            expected="products of hess or hessp that are differences of jac",
            got="others",
            remedy="Compare scipy.optimize.approx_fprime(x, jac) with hess(x), and "
            "scipy.optimize.check_grad(fun, jac, x) with zero; or leave hess and hessp out.",
        ) from error


def _function(fun: Callable, jac: Any, hess: Any, hessp: Any, args: tuple) -> tuple[Any, Any]:
    """The function of a tensor, and how its Hessian products are taken."""
    if callable(jac):
        hess, hessp = (given if callable(given) else None for given in (hess, hessp))
        function = NumPyFunction(fun, jac, hess, hessp, args)
        return function, "retained-graph" if function.has_products else "finite-difference"
    if jac:
        raise ArgumentError(
            expected="jac to be a function, or True; or none, for a function of a tensor",
            got=f"jac={jac!r}",
            remedy="Give the gradient. Differences of values are not accurate enough.",
        )

    def of_tensor(x: Tensor) -> Tensor:
        value = fun(x, *args)
        if isinstance(value, Tensor):
            return value
        raise FunctionError(
            expected="fun of a float64 tensor to be a scalar tensor, where there is no jac=",
            got=kind_of(value),
            remedy="Give jac= with a function of arrays; or compute fun with torch.",
        )

    return of_tensor, "auto"


def _options(name: str, options: dict[str, Any]) -> tuple[MinimizeMethod, dict[str, Any]]:
    """The method with its options, and the arguments of `hesse.minimize`."""
    method, chosen, own = METHODS[name], {}, {}
    gtol = options.pop("gtol", None)
    tol = options.pop("tol", None)
    if gtol is not None or tol is not None:
        chosen |= {"rtol": 0.0, "atol": float(tol if gtol is None else gtol)}
    known = {field.name for field in fields(method)}
    for option, value in options.items():
        renamed = _RENAMED.get(option, option)
        if renamed in known:
            own[renamed] = value
        elif renamed in _OPTIONS:
            chosen[renamed] = bool(value) if option == "disp" else value
        else:
            names = sorted({"gtol", *_RENAMED, *_OPTIONS, *known})
            raise ArgumentError(
                expected=f"options among {', '.join(names)}",
                got=repr(option),
                remedy="Leave it out.",
            )
    return (replace(method, **own) if own else method), chosen


def _bounds(bounds: Any, n: int) -> Any:
    """SciPy's pairs, one a variable, as a pair of vectors."""
    if bounds is None:
        return None
    if isinstance(bounds, Bounds):
        lower, upper = bounds.lb, bounds.ub
    else:
        lower, upper = zip(*bounds, strict=True)
    low = [-np.inf if b is None else b for b in np.broadcast_to(np.asarray(lower, object), n)]
    high = [np.inf if b is None else b for b in np.broadcast_to(np.asarray(upper, object), n)]
    return torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)


def _callback(callback: Callable | None) -> Callable[[Iteration], bool] | None:
    """A callback of SciPy, of x or of an `intermediate_result`; StopIteration stops."""
    if callback is None:
        return None
    try:
        names = set(inspect.signature(callback).parameters)
    except (TypeError, ValueError):
        names = set()

    def called(state: Iteration) -> bool:
        x = state.point.x.numpy().copy()
        try:
            if names == {"intermediate_result"}:
                callback(intermediate_result=OptimizeResult(x=x, fun=state.value))
            else:
                callback(x)
        except StopIteration:
            return True
        return False

    return called
