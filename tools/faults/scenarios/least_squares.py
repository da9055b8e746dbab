# SPDX-License-Identifier: Apache-2.0
"""Faults in `least_squares`, and in what `scipy.optimize.minimize` gives to methods of Hesse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import hesse
from tools.faults.fault import Happened, Injected, Seen, error_of, fault, marked
from tools.faults.scenarios.calls import DOUBLE, randn
from tools.faults.scenarios.functions import RAISED

_GROUP, _SCIPY = "Least squares", "Methods for SciPy"
_METHODS = {f"least_squares, {m}": m for m in ("svd", "lsmr")}
_A, _START = randn(20, 6), torch.ones(6, dtype=DOUBLE)


def residuals(x: Tensor) -> Tensor:
    """Residuals that vanish at 0."""
    return torch.sinh(_A @ x / 4)


def _at_call(make: Callable[[Tensor], Any], at: int = 3) -> Callable[[Tensor], Any]:
    calls: list[int] = []

    def r(x: Tensor) -> Any:
        calls.append(1)
        if len(calls) == at:
            Happened.now()
            return make(x)
        return residuals(x)

    return r


def _fit(r: Any, method: str, **options: Any) -> Seen:
    result = hesse.least_squares(r, _START, method, **options)
    return Seen(result.x.abs().max() < 1e-6, torch.tensor(True), status=result.status)


_TRIALS: dict[str, Callable[[Tensor], Any]] = {
    "is NaN": lambda x: residuals(x) * math.nan,
    "is infinite in one entry": lambda x: residuals(x) + torch.eye(20, dtype=DOUBLE)[3] * math.inf,
    "has another length": lambda x: residuals(x)[:-1],
    "is a scalar": lambda x: residuals(x).square().sum(),
    "is None": lambda x: None,
}
for _what, _trial in _TRIALS.items():

    @fault(_GROUP, f"r {_what} at its third call", _METHODS)
    def bad_trial(method: str, trial: Any = _trial) -> Seen:
        """The residuals are something else once."""
        return _fit(_at_call(trial), method)


for _what, _make in RAISED.items():

    @fault(_GROUP, f"r raises {_what} at its third call", _METHODS)
    def raising_trial(method: str, make: Any = _make) -> Seen:
        """Rejected where r is not defined, passed on where it is a fault."""

        def trial(x: Tensor) -> Tensor:
            raise marked(make())

        seen: list[Seen] = []
        error = error_of(lambda: seen.append(_fit(_at_call(trial), method)))
        return seen[0] if error is None else Seen(error=error)


@fault(_GROUP, "r is not finite at x0", _METHODS)
def bad_start(method: str) -> Seen:
    """The start is outside of the domain."""
    Happened.now()
    return _fit(lambda x: torch.log(-x), method)


@fault(_GROUP, "r is another function at every call", _METHODS)
def changing(method: str) -> Seen:
    """Residuals with noise of 10 %."""

    def r(x: Tensor) -> Tensor:
        Happened.now()
        return residuals(x) * (1 + 0.1 * torch.rand((), dtype=DOUBLE)) + 1.0

    result = hesse.least_squares(r, _START, method, max_iterations=50)
    return Seen(0.0, 1.0, status=result.status)


@fault(_GROUP, "r does not depend on one variable", _METHODS)
def unidentified(method: str) -> Seen:
    """A column of the Jacobian vanishes: the other variables are those of the minimum."""
    Happened.now()
    result = hesse.least_squares(lambda x: residuals(x * _mask()), _START, method)
    return Seen(result.x[1:].abs().max() < 1e-6, torch.tensor(True), status=result.status)


def _mask() -> Tensor:
    return torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=DOUBLE)


# -- SciPy -----------------------------------------------------------------------------------------

_SCIPY_METHODS = {f"hesse.scipy.{m}": m for m in (
    "newton_cg", "trust_cg", "trust_krylov", "cubic", "lbfgs", "newton_minres")}  # fmt: skip
_X0 = np.array([-1.2, 1.0])


def _scipy(method: str, **changes: Any) -> Seen:
    from scipy.optimize import minimize, rosen, rosen_der, rosen_hess_prod

    import hesse.scipy

    functions = {"fun": rosen, "jac": rosen_der, "hessp": rosen_hess_prod} | changes
    result = minimize(x0=_X0, method=getattr(hesse.scipy, method), **functions)
    status = None if result.success else list(hesse.Status)[result.status - 1]
    return Seen(np.abs(result.x - 1).max() < 1e-5, True, status=status)


def _once(name: str, make: Callable[[Any], Any], at: int = 4) -> dict[str, Any]:
    """One of SciPy's functions, something else at one call."""
    import scipy.optimize as s

    function = {"fun": s.rosen, "jac": s.rosen_der, "hessp": s.rosen_hess_prod}[name]
    calls: list[int] = []

    def changed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            Happened.now()
            return make(function(*arguments))
        return function(*arguments)

    return {name: changed}


def _raise(value: Any) -> Any:
    raise Injected("a fault of the user's")


_WITH_PRODUCTS = {name: m for name, m in _SCIPY_METHODS.items() if m != "lbfgs"}
_RETURNED: dict[str, Callable[[Any], Any]] = {
    "NaN": lambda value: value * math.nan,
    "None": lambda value: None,
    "text": lambda value: "a number",
}
for _name, _calls in (("fun", _SCIPY_METHODS), ("jac", _SCIPY_METHODS), ("hessp", _WITH_PRODUCTS)):
    for _what, _make in _RETURNED.items():

        @fault(_SCIPY, f"{_name} returns {_what} at its 4th call", _calls)
        def wrong_value(method: str, name: str = _name, make: Any = _make) -> Seen:
            """One value is something else."""
            return _scipy(method, **_once(name, make))

    @fault(_SCIPY, f"{_name} raises at its 4th call", _calls)
    def raising(method: str, name: str = _name) -> Seen:
        """The error of the user reaches the caller."""
        return _scipy(method, **_once(name, _raise))


@fault(_SCIPY, "jac of another length", _SCIPY_METHODS)
def short_gradient(method: str) -> Seen:
    """The gradient has fewer entries than x."""
    return _scipy(method, **_once("jac", lambda g: g[:-1], 1))


@fault(_SCIPY, "jac is the gradient of another function", _SCIPY_METHODS)
def wrong_gradient(method: str) -> Seen:
    """The gradient has the wrong sign."""
    from scipy.optimize import rosen_der

    def jac(x: Any) -> Any:
        Happened.now()
        return -rosen_der(x)

    return _scipy(method, jac=jac)


@fault(_SCIPY, "hessp is not symmetric", _WITH_PRODUCTS)
def not_symmetric(method: str) -> Seen:
    """Products with a matrix that has a skew part."""
    from scipy.optimize import rosen_hess_prod

    def hessp(x: Any, v: Any) -> Any:
        Happened.now()
        return rosen_hess_prod(x, v) + 300 * np.array([v[1], -v[0]])

    return _scipy(method, hessp=hessp)
