# SPDX-License-Identifier: Apache-2.0
"""Hesse's methods and SciPy's, each run on a counted function to its tightest tolerance.

A gradient counts as small by the rule of `hesse.minimize`: |g| <= 1e-8 min(|g(x0)|, 1).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

import hesse
from benchmarks.suite.counted import Counted

RTOL = 1e-8
MAX_ITERATIONS = 5000


class Ending(NamedTuple):
    """Where a solver stopped, whether it claims a minimum, and what it says."""

    x: Tensor
    claims: bool
    message: str


class Solver(Protocol):
    """Minimises a counted function from x."""

    def __call__(self, f: Counted, x: Tensor, *, rtol: float = ...) -> Ending:
        """Where it ended, for this relative tolerance of the gradient."""
        ...


class AtOnePoint:
    """Value, gradient and products at the last point asked for, from one autograd graph."""

    def __init__(self, f: Counted) -> None:
        self.f = f
        self._x: Tensor | None = None

    def value(self, x: Any) -> float:
        """f(x)."""
        return float(self._at(x).detach())

    def gradient(self, x: Any) -> np.ndarray:
        """grad f(x)."""
        self._at(x)
        if self._gradient is None:
            (self._gradient,) = torch.autograd.grad(self._value, self._leaf, create_graph=True)
        return self._gradient.detach().numpy().copy()

    def product(self, x: Any, v: Any) -> np.ndarray:
        """H(x) v."""
        self.gradient(x)
        assert self._gradient is not None
        v = torch.as_tensor(np.asarray(v, dtype=np.float64).copy())
        if not self._gradient.requires_grad:
            return np.zeros_like(v.numpy())
        (Hv,) = torch.autograd.grad(
            self._gradient, self._leaf, v, retain_graph=True, materialize_grads=True
        )
        return Hv.numpy()

    def _at(self, x: Any) -> Tensor:
        point = torch.as_tensor(np.asarray(x, dtype=np.float64))
        if self._x is None or not torch.equal(point, self._x):
            self._x, self._gradient = point.clone(), None
            self._leaf = self._x.clone().requires_grad_()
            self._value = self.f(self._leaf)
        return self._value


def tolerance(f: Counted, x: Tensor, rtol: float = RTOL) -> float:
    """The norm of a small gradient. Not counted: every solver is told it."""
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(f.f(leaf), leaf)
    return rtol * min(float(g.norm()), 1.0)


def with_hesse(method: str) -> Solver:
    """`hesse.minimize` by a method."""

    def solve(f: Counted, x: Tensor, *, rtol: float = RTOL) -> Ending:
        options: dict[str, Any] = {"mode": "retained-graph", "max_iterations": MAX_ITERATIONS}
        if rtol != RTOL:
            options["rtol"] = rtol
        if method == "newton-direct":
            options["curvature"] = SparseHessians(f, x)
        options["method"] = method
        result: Any = hesse.minimize(f, x, **options)
        return Ending(result.x, result.success, result.status.name)

    return solve


class SparseHessians:
    """f, x -> the Hessian's entries, on a pattern found once; each counts its colours as products.

    They come from programs, which no hook of autograd sees.
    """

    def __init__(self, f: Counted, x: Tensor) -> None:
        self._f, self.operator = f, hesse.sparse_hessian_operator(f.f, x)

    def __call__(self, _: Any, x: Any) -> Any:
        """The sparse operator at x."""
        self.operator = self.operator.at(x)
        self._f.add(products=self.operator.num_products)
        return self.operator


def with_scipy(method: str) -> Solver:
    """A method of `scipy.optimize.minimize`, with exact derivatives and products."""

    def solve(f: Counted, x: Tensor, *, rtol: float = RTOL) -> Ending:
        from scipy.optimize import minimize

        gtol, at = tolerance(f, x, rtol), AtOnePoint(f)
        options: dict[str, Any] = {"maxiter": MAX_ITERATIONS}
        if method == "Newton-CG":
            options["xtol"] = rtol
        elif method == "L-BFGS-B":
            largest = gtol / len(x) ** 0.5
            options |= {"gtol": largest, "ftol": 0.0, "maxfun": 100_000, "maxls": 50}
        else:
            options["gtol"] = gtol
        derivatives = {} if method == "L-BFGS-B" else {"hessp": at.product}
        result = minimize(
            at.value, x.numpy(), method=method, jac=at.gradient, options=options, **derivatives
        )
        return Ending(torch.from_numpy(result.x), bool(result.success), _plain(result.message))

    return solve


def _plain(message: Any) -> str:
    """A message without numbers, so that equal reasons read equal."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+(e[+-]?\d+)?", "#", str(message))).strip()[:100]


HESSE = {
    f"hesse {method}": with_hesse(method)
    for method in (
        "auto", "newton-cg", "trust-cg", "trust-krylov", "cubic", "newton-minres",
        "newton-direct", "lbfgs",
    )
}  # fmt: skip
SCIPY = {
    f"scipy {method}": with_scipy(method)
    for method in ("Newton-CG", "trust-ncg", "trust-krylov", "L-BFGS-B")
}
