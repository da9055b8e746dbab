# SPDX-License-Identifier: Apache-2.0
"""Faults in what the applications are given: energies, equations, models and data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse import apps
from tools.faults.fault import Happened, Injected, Seen, error_of, fault
from tools.faults.scenarios.calls import DOUBLE, definite, randn
from tools.faults.scenarios.models import batches, network

_GROUP = "Applications"
_M = definite(6)
START = torch.tensor([0.3, 0.2, 0.1, 0.1, -0.2, 0.1], dtype=DOUBLE)


class _Once:
    """A function that is something else at one call."""

    def __init__(self, f: Callable[..., Any], make: Callable[[Any], Any], at: int) -> None:
        self.f, self.make, self.at, self.calls = f, make, at, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        value = self.f(*arguments)
        if self.calls == self.at:
            Happened.now()
            return self.make(value)
        return value


def _raise(value: Any) -> Any:
    raise Injected("a fault of the user's")


_CHANGES: dict[str, Callable[[Any], Any]] = {
    "is NaN": lambda value: value * math.nan,
    "is None": lambda value: None,
    "has no graph": lambda value: value.detach(),
    "raises": _raise,
}

# -- Energies --------------------------------------------------------------------------------------


def energy(x: Tensor) -> Tensor:
    """Two wells at x_0 = 1 and -1, and a saddle point at 0."""
    return (x[0] ** 2 - 1) ** 2 / 4 + x[1:] @ _M[1:, 1:] @ x[1:] + x[0] * x[1] / 8


def chain(x: Tensor) -> Tensor:
    """Springs between neighbours, the first and the last of which are held."""
    return (x[0] ** 2 + x[-1] ** 2 + (x[1:] - x[:-1]).square().sum()) / 2


def _saddle(f: Any) -> Seen:
    found = apps.saddle(f, START, rigid="none")
    return Seen(found.jac.norm() < 1e-5, torch.tensor(True), status=found.status)


def _modes(f: Any) -> Seen:
    x = hesse.minimize(energy, START, atol=1e-12).x
    found = apps.modes(f, x, rigid="none")
    exact = torch.linalg.eigvalsh(torch.func.hessian(energy)(x))
    return Seen(found.eigenvalues, exact, 1e-5, status=found.status)


def _errors(f: Any) -> Seen:
    x = hesse.minimize(energy, START, atol=1e-12).x
    found = apps.standard_errors(f, x)
    exact = torch.linalg.inv(torch.func.hessian(energy)(x)).diagonal().sqrt()
    return Seen(found.standard_error, exact, 1e-6)


_ENERGIES = {"saddle": _saddle, "modes": _modes, "standard_errors": _errors}
for _what, _make in _CHANGES.items():
    for _at in (1, 2):

        @fault(_GROUP, f"f {_what} at call {_at}", _ENERGIES if _at == 1 else {"saddle": _saddle})
        def wrong_energy(run: Callable[[Any], Seen], make: Any = _make, at: int = _at) -> Seen:
            """One value is something else."""
            return run(_Once(energy, make, at))


@fault(_GROUP, "f is another function at every call", _ENERGIES)
def noisy_energy(run: Callable[[Any], Seen]) -> Seen:
    """Values with noise of 10 %."""

    def f(x: Tensor) -> Tensor:
        Happened.now()
        return energy(x) * (1 + 0.1 * torch.rand((), dtype=DOUBLE))

    return run(f)


@fault(_GROUP, "the point is no minimum", "standard_errors")
def no_minimum() -> Seen:
    """The gradient does not vanish, and the Hessian is indefinite."""
    Happened.now()
    return Seen(apps.standard_errors(energy, START).standard_error, torch.zeros(6, dtype=DOUBLE))


@fault(_GROUP, "the point is no minimum", "modes")
def mixed_modes() -> Seen:
    """Rotations mix with vibrations: a warning says so."""
    triangle = torch.tensor([[0.0, 0.0], [1.2, 0.0], [0.0, 1.2]], dtype=DOUBLE)

    def springs(x: Tensor) -> Tensor:
        Happened.now()
        return ((torch.pdist(x) - 1.0) ** 2).sum()

    found = apps.modes(springs, triangle)
    return Seen(len(found.eigenvalues) + found.num_rigid, 6)


@fault(_GROUP, "a parameter that f does not depend on", "standard_errors")
def unidentified() -> Seen:
    """The information is singular."""
    Happened.now()
    found = apps.standard_errors(lambda x: (x[1:] ** 2).sum(), torch.zeros(4, dtype=DOUBLE))
    right = torch.tensor([math.inf] + [0.5**0.5] * 3, dtype=DOUBLE)
    return Seen(found.standard_error.nan_to_num(-1.0, -1.0, -1.0),
                right.nan_to_num(-1.0, -1.0, -1.0), 1e-10)  # fmt: skip


# -- Equations -------------------------------------------------------------------------------------

_L = randn(6, seed=4) / 2


def _quadratic(x: Tensor, l: Tensor) -> Tensor:
    return x @ (_M @ x) / 2 + (l.exp() * x * x).sum() / 2 - x.sum()


def _slope(x: Tensor, l: Tensor) -> Tensor:
    return _M @ x + l.exp() * x - 1.0


def _step(x: Tensor, l: Tensor) -> Tensor:
    return x - _slope(x, l) / 12


def _exact(l: Tensor) -> Tensor:
    return torch.linalg.solve(_M + torch.diag(l.exp()), torch.ones(6, dtype=DOUBLE))


_EQUATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "argmin": (apps.argmin, _quadratic),
    "root": (apps.root, _slope),
    "fixed_point": (apps.fixed_point, _step),
}


def _derived(make: Callable[..., Any], f: Any, warning: str | None = None, **options: Any) -> Seen:
    """The solution, and the gradient of its sum of squares."""
    x = make(f, torch.zeros(6, dtype=DOUBLE), rtol=1e-10, warm_start=False, **options)
    l = _L.clone().requires_grad_()
    found = x(l)
    found.square().sum().backward()
    right = _L.clone().requires_grad_()
    _exact(right).square().sum().backward()
    return Seen([found, l.grad], [_exact(_L), right.grad], 1e-5, status=x.report.adjoint_status,
                warning=warning)  # fmt: skip


for _what, _make in _CHANGES.items():
    for _at in (1, 4):

        @fault(_GROUP, f"the equation {_what} at call {_at}", _EQUATIONS)
        def wrong_equation(equation: tuple[Any, Any], make: Any = _make, at: int = _at) -> Seen:
            """One value is something else."""
            return _derived(equation[0], _Once(equation[1], make, at))


_SOLVES: dict[str, Callable[[Any, Any], Any]] = {
    "gives no solution": lambda x0, l: x0 + 0.1,
    "gives NaN": lambda x0, l: x0 * math.nan,
    "gives another shape": lambda x0, l: _exact(l)[:-1],
    "gives None": lambda x0, l: None,
    "gives another dtype": lambda x0, l: _exact(l).float(),
    "raises": lambda x0, l: _raise(x0),
    "writes to x0": lambda x0, l: x0.copy_(_exact(l)),
}
for _what, _solve in _SOLVES.items():

    @fault(_GROUP, f"solve= {_what}", _EQUATIONS)
    def wrong_solve(equation: tuple[Any, Any], solve: Any = _solve) -> Seen:
        """A solver of the user's that does not do what it should."""

        def given(x0: Any, l: Any) -> Any:
            Happened.now()
            return solve(x0, l)

        return _derived(*equation, "is no solution", solve=given)


@fault(_GROUP, "a map that does not contract", "fixed_point")
def diverging() -> Seen:
    """The fixed point is found otherwise, or not at all."""
    Happened.now()
    return _derived(apps.fixed_point, lambda x, l: x - 3 * _slope(x, l))


# -- Influence -------------------------------------------------------------------------------------


def _queries() -> Any:
    return batches(64)[0][0][:4], batches(64)[0][1][:4]


def influences(path: Any = None, data: Any = None, **options: Any) -> Any:
    """Influences of the examples on four queries, to convergence."""
    risk = hesse.Risk(network(), nn.MSELoss(), batches() if data is None else data)
    options = {"damping": 0.1, "rtol": 1e-9} | options
    return apps.influence(risk, risk.params, _queries(), checkpoint=path, **options)


class _Raising:
    """A loader that raises in one of its sweeps."""

    def __init__(self, at: int) -> None:
        self.sweeps, self.at = 0, at

    def __iter__(self) -> Any:
        self.sweeps += 1
        for number, batch in enumerate(batches()):
            if self.sweeps == self.at and number == 2:
                Happened.now()
                raise Injected("the disk is gone")
            yield batch


@fault(
    _GROUP, "a loader that raises in a later sweep", {f"influence, sweep {k}": k for k in (3, 5)}
)
def raising_loader(at: int) -> Seen:
    """The error reaches the caller, and the next call is right."""
    loader = _Raising(at)
    error = error_of(lambda: influences(data=loader))
    return Seen(influences(data=loader).scores, influences().scores, 1e-6, error=error)


@fault(_GROUP, "NaN in one target", "influence")
def nan_target() -> Seen:
    """A missing value in the data."""
    Happened.now()
    data = [(x.clone(), y.clone()) for x, y in batches()]
    data[2][1][3, 1] = math.nan
    return Seen(influences(data=data).scores, influences().scores, 1e-6)


@fault(_GROUP, "queries that are not finite", "influence")
def nan_query() -> Seen:
    """A query is NaN."""
    Happened.now()
    risk = hesse.Risk(network(), nn.MSELoss(), batches())
    x, y = (part.clone() for part in _queries())
    x[1, 1] = math.nan
    scores = apps.influence(risk, risk.params, (x, y), damping=0.1, rtol=1e-9).scores
    return Seen(scores, influences().scores, 1e-6)


@fault(_GROUP, "a singular matrix without damping", "influence")
def singular() -> Seen:
    """More parameters than there are outputs: scores that depend on the kernel are refused."""
    Happened.now()
    data = [(batches(64)[0][0][:5], batches(64)[0][1][:5])]
    risk = hesse.Risk(network(), nn.MSELoss(), data)
    found = apps.influence(risk, risk.params, _queries(), rtol=1e-9, max_products=400)
    return Seen(found.converged, torch.tensor(1.0), status=found.solution.status)
