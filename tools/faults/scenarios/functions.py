# SPDX-License-Identifier: Apache-2.0
"""Faults in a function that a user differentiates or minimises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hesse
from tools.faults.fault import Happened, Injected, Seen, error_of, fault, marked
from tools.faults.scenarios.calls import DOUBLE, randn

_GROUP = "Functions"
_X, _V = randn(20), randn(20, seed=1)


def quartic(x: Tensor) -> Tensor:
    """A smooth function with the Hessian 12 diag(x^2) + 2 I."""
    return (x**4).sum() + (x**2).sum()


def _product(x: Tensor = _X) -> Tensor:
    return 12 * x**2 * _V + 2 * _V


def _of(f: Callable[[Tensor], Any], x: Any = _X) -> Seen:
    """The product of a function that is wrong."""

    def wrong(y: Any) -> Any:
        Happened.now()
        return f(y)

    return Seen(hesse.hessian_operator(wrong, x) @ _V, _product(), 1e-10)


_WRONG: dict[str, Callable[[Tensor], Any]] = {
    "a vector instead of a scalar": lambda x: x**4,
    "a float instead of a tensor": lambda x: float(quartic(x)),
    "None instead of a tensor": lambda x: None,
    "a pair instead of a scalar": lambda x: (quartic(x), x),
    "a complex number": lambda x: quartic(x) * (1 + 0j),
    "an integer": lambda x: quartic(x).long(),
    "a value without a graph": lambda x: quartic(x).detach(),
    "a value by NumPy": lambda x: torch.tensor((x.detach().numpy() ** 4).sum()),
    "NaN": lambda x: quartic(x) * math.nan,
    "infinity": lambda x: quartic(x) + math.inf,
    "another number at every call": lambda x: quartic(x) * (1 + 0.1 * torch.rand(())),
}
for _what, _f in _WRONG.items():

    @fault(_GROUP, f"f returns {_what}", "hessian_operator(f, x) @ v")
    def wrong_value(f: Any = _f) -> Seen:
        """f returns something else."""
        return _of(f)


_POINTS: dict[str, Any] = {
    "integers": torch.ones(20, dtype=torch.int64),
    "complex numbers": torch.ones(20, dtype=torch.complex128),
    "NaN": torch.full((20,), math.nan, dtype=DOUBLE),
    "a sparse tensor": torch.ones(20, dtype=DOUBLE).to_sparse(),
    "a list of floats": [1.0] * 20,
    "None": None,
    "on another device": torch.ones(20, dtype=DOUBLE, device="meta"),
}
for _what, _x in _POINTS.items():

    @fault(_GROUP, f"x: {_what}", "hessian_operator(f, x) @ v")
    def wrong_point(x: Any = _x) -> Seen:
        """x is something else."""
        Happened.now()
        return _of(quartic, x)


@fault(_GROUP, "f writes to its argument", "hessian_operator(f, x) @ v")
def writes() -> Seen:
    """f changes x in place."""
    x = _X.clone()

    def f(y: Tensor) -> Tensor:
        Happened.now()
        y.mul_(2.0)
        return quartic(y)

    error = error_of(lambda: hesse.hessian_operator(f, x) @ _V)
    return Seen(x, _X, error=error)


@fault(_GROUP, "f writes to its argument through .data", "hessian_operator(f, x) @ v")
def writes_data() -> Seen:
    """f changes x behind autograd's back."""
    x = _X.clone()

    def f(y: Tensor) -> Tensor:
        Happened.now()
        value = quartic(y)
        y.data.mul_(1.1)
        return value

    error = error_of(lambda: hesse.hessian_operator(f, x) @ _V)
    return Seen(x, _X, error=error)


@fault(_GROUP, "f keeps a count and changes with every call", "hessian_operator(f, x) @ v")
def counts() -> Seen:
    """f depends on how often it was called."""
    calls: list[int] = []

    def f(y: Tensor) -> Tensor:
        Happened.now()
        calls.append(1)
        return quartic(y) * len(calls)

    H = hesse.hessian_operator(f, _X)
    products = [H @ _V for _ in range(5)]
    return Seen(torch.stack(products), torch.stack([products[0]] * 5), 1e-10)


@fault(_GROUP, "a function of NumPy in f's backward pass", "hessian_operator(f, x) @ v")
def custom() -> Seen:
    """A custom function whose second derivative torch does not see."""

    class Quartic(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
            ctx.save_for_backward(x)
            return (x**4).sum() + (x**2).sum()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            Happened.now()
            (x,) = ctx.saved_tensors
            array = 4 * x.detach().numpy() ** 3 + 2 * x.detach().numpy()
            return torch.from_numpy(array) * grads[0]

    product = hesse.hessian_operator(Quartic.apply, _X) @ _V
    return Seen(product, _product(), 1e-5)


@fault(_GROUP, "v with NaN", {"H @ v": "product", "solve(H, b)": "solve", "hvp": "hvp"})
def nan_direction(way: str) -> Seen:
    """The direction is not finite."""
    Happened.now()
    v = _V.clone()
    v[3] = math.nan
    H = hesse.hessian_operator(quartic, _X)
    if way == "hvp":
        return Seen(hesse.hvp(quartic, _X, v), _product(), 1e-10)
    if way == "solve":
        return Seen(hesse.solve(H, v).x, _product(), 1e-10)
    return Seen(H @ v, _product(), 1e-10)


RAISED: dict[str, Callable[[], BaseException]] = {
    "an error of the user's": lambda: Injected("a fault of the user's"),
    "RuntimeError": lambda: RuntimeError("a fault of the user's"),
    "ValueError": lambda: ValueError("a fault of the user's"),
    "KeyError": lambda: KeyError("a fault of the user's"),
    "MemoryError": MemoryError,
    "torch.OutOfMemoryError": lambda: torch.OutOfMemoryError("out of memory"),
    "RecursionError": lambda: RecursionError("too deep"),
}
for _what, _make in RAISED.items():

    @fault(_GROUP, f"f raises {_what} at its first call", "hessian_operator(f, x) @ v")
    def raises_first(make: Any = _make) -> Seen:
        """f raises once, and the next product is right."""
        return _raises(make, 1)

    @fault(_GROUP, f"f raises {_what} at its third call", "hessian_operator(f, x) @ v")
    def raises_third(make: Any = _make) -> Seen:
        """f raises once, while products are prepared."""
        return _raises(make, 3)


def _raises(make: Callable[[], BaseException], at: int) -> Seen:
    calls: list[int] = []

    def f(y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == at:
            Happened.now()
            raise marked(make())
        return quartic(y)

    H = hesse.hessian_operator(f, _X, mode="traced-split")
    error = None
    for point in range(4):
        H, x = H.at((1 + point) * _X), (1 + point) * _X
        error = error_of(lambda H=H: H @ _V) or error
        if not torch.allclose(H @ _V, _product(x), rtol=1e-10):
            return Seen(H @ _V, _product(x), 1e-10, error=error)
    return Seen(H @ _V, _product(4 * _X), 1e-10, error=error)


# -- Preconditioners -------------------------------------------------------------------------------

_BAD = {
    "not positive definite": lambda r: r * torch.linspace(-1, 1, 20, dtype=DOUBLE),
    "not symmetric": lambda r: r + r.flip(0).cumsum(0),
    "with NaN": lambda r: r * math.nan,
    "zero": lambda r: 0 * r,
}
for _what, _apply in _BAD.items():

    @fault("Preconditioners", f"a preconditioner that is {_what}",
           {f"solve, {m}": m for m in ("cg", "minres", "block-cg")})  # fmt: skip
    def bad_preconditioner(method: str, apply: Any = _apply) -> Seen:
        """The preconditioner is not what the method needs."""
        A = hesse.hessian_operator(quartic, _X)

        def product(r: Tensor) -> Tensor:
            Happened.now()
            return apply(r)

        M = hesse.function_operator(product, 20, symmetric=True, dtype=DOUBLE)
        b = torch.stack([_V, _X], 1) if method == "block-cg" else _V
        solution = hesse.solve(A, b, method, M, rtol=1e-10)
        right = b / (12 * _X**2 + 2).reshape(-1, *[1] * (b.ndim - 1))
        return Seen(solution.x, right, 1e-6, status=solution.status)


@fault("Preconditioners", "a generator of the wrong kind", {"eigsh": "eigsh", "trace": "trace"})
def bad_generator(name: str) -> Seen:
    """NumPy's generator instead of torch's."""
    import numpy

    Happened.now()
    A = hesse.diagonal_operator(torch.ones(50, dtype=DOUBLE))
    generator: Any = numpy.random.default_rng(0)
    if name == "eigsh":
        return Seen(hesse.eigsh(A, 2, generator=generator).values, torch.ones(2), 1e-6)
    A = hesse.function_operator(lambda v: v + 0, 50, dtype=DOUBLE)
    return Seen(hesse.trace(A, method="hutchinson", generator=generator).value, 50.0, 1e-6)
