# SPDX-License-Identifier: Apache-2.0
"""Faults in the function that `minimize`, by each of its methods, is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hesse
from tools.faults.fault import Happened, Seen, error_of, fault, marked
from tools.faults.scenarios.calls import DOUBLE
from tools.faults.scenarios.functions import RAISED

_MINIMISE = "Minimisation"
METHODS = ("newton-cg", "trust-cg", "trust-krylov", "cubic", "lbfgs", "newton-minres",
           "newton-direct")  # fmt: skip
START = torch.full((6,), 2.0, dtype=DOUBLE)
_METHODS = {f"minimize, {m}": m for m in METHODS}


def at_trial(make: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function with its minimum at 0 that is something else at the first trial point, once."""
    done: list[int] = []

    def f(x: Tensor) -> Tensor:
        if not done and not torch.equal(x.detach(), START):
            done.append(1)
            Happened.now()
            return make(x)
        return torch.log1p(x**2).sum() + 0.1 * (x**2).sum()

    return f


def minimised(f: Callable[[Tensor], Tensor], method: str) -> Any:
    """The result of `minimize`, which traces at the same point in every run."""
    with hesse.deterministic():
        return hesse.minimize(f, START, method)


_TRIALS: dict[str, Callable[[Tensor], Any]] = {
    "is NaN": lambda x: x.sum() * math.nan,
    "is infinite": lambda x: x.sum() * 0 + math.inf,
}
for _what, _trial in _TRIALS.items():

    @fault(_MINIMISE, f"f {_what} at a trial point", _METHODS)
    def bad_trial(method: str, trial: Any = _trial) -> Seen:
        """The trial is rejected."""
        result = minimised(at_trial(trial), method)
        return Seen(result.jac.norm() < 1e-6, torch.tensor(True), status=result.status)


for _what, _make in RAISED.items():

    @fault(_MINIMISE, f"f raises {_what} at a trial point", _METHODS)
    def raising_trial(method: str, make: Any = _make) -> Seen:
        """Rejected where f is not defined, passed on where it is a fault."""

        def trial(x: Tensor) -> Tensor:
            raise marked(make())

        results: list[Any] = []
        error = error_of(lambda: results.append(minimised(at_trial(trial), method)))
        if error is not None:
            return Seen(error=error)
        return Seen(results[0].jac.norm() < 1e-6, torch.tensor(True), status=results[0].status)


@fault(_MINIMISE, "f has no minimum", _METHODS)
def unbounded(method: str) -> Seen:
    """f falls without end."""
    Happened.now()
    result = hesse.minimize(lambda x: (x - x**3).sum(), torch.ones(6, dtype=DOUBLE), method)
    return Seen(0.0, 1.0, status=result.status)


@fault(_MINIMISE, "x0 is a saddle point", _METHODS)
def saddle(method: str) -> Seen:
    """The gradient vanishes at the start."""
    Happened.now()
    result = hesse.minimize(lambda x: (x**4 - x**2).sum(), torch.zeros(6, dtype=DOUBLE), method)
    return Seen(result.fun, -1.5, 1e-6, status=result.status)


@fault(_MINIMISE, "f is not finite at x0", _METHODS)
def bad_start(method: str) -> Seen:
    """The start is outside of the domain."""
    Happened.now()
    hesse.minimize(lambda x: torch.log(x).sum(), -torch.ones(6, dtype=DOUBLE), method)
    return Seen(0.0, 1.0)


@fault(_MINIMISE, "a preconditioner that is not positive definite", _METHODS)
def indefinite_preconditioner(method: str) -> Seen:
    """A preconditioner with negative eigenvalues."""
    Happened.now()
    d = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0], dtype=DOUBLE)
    result = hesse.minimize(
        lambda x: (x**4).sum() + (x**2).sum(), START, method,
        preconditioner=hesse.diagonal_operator(d),
    )  # fmt: skip
    return Seen(result.jac.norm() < 1e-6, torch.tensor(True), status=result.status)


@fault(_MINIMISE, "f is another function at every call", _METHODS)
def changing(method: str) -> Seen:
    """Values and gradients with noise of 10 %."""

    def f(x: Tensor) -> Tensor:
        Happened.now()
        return (x**4).sum() * (1 + 0.1 * torch.rand((), dtype=DOUBLE))

    result = hesse.minimize(f, START, method, max_iterations=50)
    return Seen(0.0, 1.0, status=result.status)


@fault(_MINIMISE, "a gradient that is that of another function", _METHODS)
def wrong_gradient(method: str) -> Seen:
    """A custom function whose backward pass has the wrong sign in one entry."""

    class Quartic(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
            ctx.save_for_backward(x)
            return (x**4).sum()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            Happened.now()
            (x,) = ctx.saved_tensors
            signs = torch.ones_like(x)
            signs[3] = -1.0
            return 4 * signs * x**3 * grads[0]

    result = hesse.minimize(Quartic.apply, START, method, max_iterations=50)
    return Seen(result.x.norm() < 1e-2, torch.tensor(True), status=result.status)


@fault(_MINIMISE, "bounds that leave no point", _METHODS)
def empty_box(method: str) -> Seen:
    """The lower bound is above the upper one."""
    Happened.now()
    box = torch.ones(6, dtype=DOUBLE), torch.zeros(6, dtype=DOUBLE)
    hesse.minimize(lambda x: (x**2).sum(), START, method, bounds=box)
    return Seen(0.0, 1.0)
