# SPDX-License-Identifier: Apache-2.0
"""Test problems: smooth functions with a point, small enough for a dense Hessian.

Each builder takes a dtype (and sizes where these matter) and returns a `Problem`; `all_problems`
calls them all, those of `hesse.testing.networks` included. They are chosen to differ in what they
ask of automatic differentiation, not in size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hesse.result import OneLine
from hesse.vectors.space import Space, Tree

HessianProduct = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Problem(OneLine):
    """A scalar function with a point in its domain.

    >>> problem = polynomial_sine()
    >>> problem.f(problem.x), problem.space.n
    (tensor(9.8415, dtype=torch.float64), 2)
    """

    name: str
    f: Callable[[Any], Tensor]
    x: Tree
    hessian_product: HessianProduct | None = None
    """(x, v) -> H v in closed form for flat x and v, where there is one."""
    residuals: Callable[[Any], Tensor] | None = None
    """r with f = |r|^2, where f is a sum of squares."""
    minimum: float | None = None
    """The lowest known value of f, to the digits that its source gives."""
    minimiser: Tensor | None = None
    """A point with that value, where there is one in closed form."""
    local_minima: tuple[float, ...] = ()
    """f at known minima that are not the lowest. NaN: there are others; inf: f falls as x grows;
    -inf: f has no lower bound."""

    @property
    def space(self) -> Space:
        """The space of x."""
        return Space.of(self.x)

    def near(self, seed: int, spread: float = 0.1) -> Problem:
        """The same function at a random point: x plus `spread` times a Gaussian vector."""
        space, generator = self.space, torch.Generator().manual_seed(seed)
        point = space.flatten(self.x) + spread * space.gaussian(generator)
        return replace(self, x=space.unflatten(point))

    def direction(self, seed: int) -> Tensor:
        """A Gaussian flat vector."""
        return self.space.gaussian(torch.Generator().manual_seed(seed))

    def __repr__(self) -> str:
        return f"Problem({self.name!r}, n = {self.space.n})"

    def __str__(self) -> str:
        return self.name


# --------------------------------------------------------------------------------------------------
# Closed forms


def polynomial_sine(dtype: torch.dtype = torch.float64) -> Problem:
    r"""f(x, y) = x^2 y + sin y at (3, 1); H = [[2y, 2x], [2x, -sin y]].

    >>> problem = polynomial_sine()
    >>> problem.hessian_product(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 0.0]))
    tensor([2., 6.])
    """

    def f(p: dict[str, Tensor]) -> Tensor:
        return p["x"] ** 2 * p["y"] + torch.sin(p["y"])

    def product(point: Tensor, v: Tensor) -> Tensor:
        x, y = point
        return torch.stack([2 * y * v[0] + 2 * x * v[1], 2 * x * v[0] - torch.sin(y) * v[1]])

    x = {"x": torch.tensor(3.0, dtype=dtype), "y": torch.tensor(1.0, dtype=dtype)}
    return Problem("polynomial_sine", f, x, product)


def rosenbrock(n: int = 6, dtype: torch.dtype = torch.float64) -> Problem:
    r"""The chained Rosenbrock function, n variables, minimum 0 at (1, ..., 1).

    $$ f(x) = \sum_{i<n} 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 $$

    The point is (-1.2, 1, -1.2, 1, ...). Function and Hessian product are vectorised: O(n).

    References: Rosenbrock 1960, doi:10.1093/comjnl/3.3.175.
    """

    def f(x: Tensor) -> Tensor:
        head, tail = x[:-1], x[1:]
        return (100.0 * (tail - head**2) ** 2 + (1.0 - head) ** 2).sum()

    def product(x: Tensor, v: Tensor) -> Tensor:
        head, tail = x[:-1], x[1:]
        result = torch.zeros_like(v)
        result[:-1] += (1200.0 * head**2 - 400.0 * tail + 2.0) * v[:-1] - 400.0 * head * v[1:]
        result[1:] += 200.0 * v[1:] - 400.0 * head * v[:-1]
        return result

    x = torch.ones(n, dtype=dtype)
    x[::2] = -1.2
    return Problem("rosenbrock", f, x, product)


def quadratic(n: int = 5, dtype: torch.dtype = torch.float64, condition: float = 100.0) -> Problem:
    """x'Ax/2 - b'x with eigenvalues of A from 1 to `condition`, spaced geometrically; at x = 0."""
    generator = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    spectrum = torch.logspace(0.0, math.log10(condition), n, dtype=torch.float64)
    A = (Q @ torch.diag(spectrum) @ Q.T).to(dtype)
    A, b = (A + A.T) / 2, torch.randn(n, dtype=torch.float64, generator=generator).to(dtype)
    x = torch.zeros(n, dtype=dtype)
    return Problem("quadratic", lambda x: 0.5 * x @ (A @ x) - b @ x, x, lambda _, v: A @ v)


def logistic_regression(dtype: torch.dtype = torch.float64) -> Problem:
    """Mean logistic loss of 20 examples in 4 variables plus |w|^2 / 200; H = X'DX/20 + I/100."""
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(20, 4, dtype=torch.float64, generator=generator).to(dtype)
    signs = torch.where(torch.arange(20) % 2 == 0, 1.0, -1.0).to(dtype)

    def f(w: Tensor) -> Tensor:
        return torch.nn.functional.softplus(-signs * (X @ w)).mean() + 0.005 * (w @ w)

    def product(w: Tensor, v: Tensor) -> Tensor:
        p = torch.sigmoid(X @ w)
        return X.T @ (p * (1 - p) * (X @ v)) / len(X) + 0.01 * v

    w = 0.5 * torch.randn(4, dtype=torch.float64, generator=generator).to(dtype)
    return Problem("logistic_regression", f, w, product)


# --------------------------------------------------------------------------------------------------
# Structures of x, and ways in which f may depend on it


class Pair(NamedTuple):
    """A namedtuple of tensors."""

    left: Tensor
    right: Tensor


def nested_tree(dtype: torch.dtype = torch.float64) -> Problem:
    """A dict of a list of a tuple, a namedtuple and a 0-d tensor; every leaf meets every other."""
    a, b, c, d, e = (t.to(dtype) for t in torch.linspace(-1, 1, 10).double().split([3, 2, 2, 2, 1]))
    x = {"list": [(a, b.view(2, 1))], "pair": Pair(c, d), "scalar": e.view(())}

    def f(x: dict[str, Any]) -> Tensor:
        (first, second), pair = x["list"][0], x["pair"]
        mixed = second @ pair.left.view(1, 2) + torch.sin(first.sum()) * pair.right
        return (mixed**2).sum() * torch.exp(x["scalar"]) + (first**3).sum()

    return Problem("nested_tree", f, x)


def linear_in_one_leaf(dtype: torch.dtype = torch.float64) -> Problem:
    """sum(exp(a)) + c'b: the gradient in b is a constant, without a graph."""
    c = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    x = {"a": torch.tensor([0.5, -0.5], dtype=dtype), "b": torch.zeros(3, dtype=dtype)}
    return Problem("linear_in_one_leaf", lambda x: torch.exp(x["a"]).sum() + c @ x["b"], x)


def linear(dtype: torch.dtype = torch.float64) -> Problem:
    """c'x: the Hessian is zero."""
    c = torch.tensor([1.0, -2.0, 3.0], dtype=dtype)
    return Problem("linear", lambda x: c @ x, torch.ones(3, dtype=dtype), lambda _, v: 0 * v)


def unused_leaf(dtype: torch.dtype = torch.float64) -> Problem:
    """f(a, b) = sum(cosh a): b is never looked at."""
    x = (torch.tensor([0.5, -0.5], dtype=dtype), torch.ones(2, 2, dtype=dtype))
    return Problem("unused_leaf", lambda x: torch.cosh(x[0]).sum(), x)


def stop_gradient(dtype: torch.dtype = torch.float64) -> Problem:
    """x'Bx/2 where B comes from a function of x under no_grad: its derivative counts as zero.

    The Hessian of f as autograd defines it is (B + B') / 2 at this x, and not that of the values of
    f: finite differences, of values or of gradients, see another function.
    """

    def product(x: Tensor, v: Tensor) -> Tensor:
        return torch.outer(x, torch.sin(x)) @ v / 2 + torch.outer(torch.sin(x), x) @ v / 2

    def f(x: Tensor) -> Tensor:
        with torch.no_grad():
            B = torch.outer(x, torch.sin(x))
        return 0.5 * x @ (B @ x)

    return Problem("stop_gradient", f, torch.tensor([0.7, -0.4, 1.1], dtype=dtype), product)


def in_place(dtype: torch.dtype = torch.float64) -> Problem:
    """Writes into a buffer of its own, row by row, as hand-written recurrences do."""

    def f(x: Tensor) -> Tensor:
        state = torch.zeros(4, dtype=dtype)
        state[0] = torch.sin(x[0])
        for i in range(1, 4):
            state[i] = torch.tanh(state[i - 1].clone() * x[i]) + x[i] ** 2
        return (state**2).sum()

    return Problem("in_place", f, torch.tensor([0.3, -0.8, 1.2, 0.5], dtype=dtype))


def log_determinant(dtype: torch.dtype = torch.float64) -> Problem:
    """Negative log-likelihood of a Gaussian: log det S + tr(S^-1 C), S = LL' + I, by Cholesky."""
    C = torch.tensor([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 1.5]], dtype=dtype)
    eye = torch.eye(3, dtype=dtype)

    def f(L: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(L @ L.T + eye)
        return 2 * factor.diagonal().log().sum() + torch.cholesky_solve(C, factor).trace()

    return Problem("log_determinant", f, torch.linspace(-1, 1, 9, dtype=dtype).view(3, 3))


def spectrum(dtype: torch.dtype = torch.float64) -> Problem:
    """Sum of log(1 + |FFT(x)|^2): real in, real out, complex in between."""

    def f(x: Tensor) -> Tensor:
        transform = torch.fft.rfft(x)
        return torch.log1p(transform.real**2 + transform.imag**2).sum()

    return Problem("spectrum", f, torch.linspace(-1, 1, 6, dtype=dtype))
