# SPDX-License-Identifier: Apache-2.0
"""The methods of `minimize` on a few problems: products, gradients and values until the end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import hesse
from hesse.errors import DerivativeError
from hesse.optimize.minimize import METHODS
from hesse.testing import problems


def saddles(n: int = 100) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """sum (x_i^2 - 1)^2 + 0.3 sum x_i x_(i+1), which has many saddle points, from near zero."""

    def f(x: Tensor) -> Tensor:
        return ((x * x - 1) ** 2).sum() + 0.3 * (x[1:] * x[:-1]).sum()

    generator = torch.Generator().manual_seed(0)
    return f, 0.01 * torch.randn(n, dtype=torch.float64, generator=generator)


def cases() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """name -> a function and its start."""
    named = {
        "rosenbrock, n = 2": problems.rosenbrock(2),
        "rosenbrock, n = 100": problems.rosenbrock(100),
        "quadratic, n = 300, condition 100": problems.quadratic(300, condition=100.0),
        "logistic_regression": problems.logistic_regression(),
        "log_determinant (singular)": problems.log_determinant(),
    }
    found: dict[str, Any] = {name: (problem.f, problem.x) for name, problem in named.items()}
    return found | {"many saddle points, n = 100": saddles()}


def run(f: Callable[[Tensor], Tensor], x: Tensor, method: Any) -> Any:
    """A minimisation; newton-direct takes a dense Hessian where there is no sparse one."""
    try:
        return hesse.minimize(f, x, method)
    except DerivativeError:
        return hesse.minimize(f, x, method, curvature=lambda _, there: dense(f, there))


def dense(f: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """The dense Hessian, of the flat x."""
    flat = x.reshape(-1)
    return hesse.dense_operator(torch.func.hessian(lambda y: f(y.reshape(x.shape)))(flat))


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks methods", description=__doc__)
    names = [name for name in METHODS if name != "auto"]
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    options = parser.parse_args(arguments or [])
    print(f"| problem | {' | '.join(f'`{name}`' for name in options.methods)} |")
    print(f"|---|{'--:|' * len(options.methods)}")
    for name, (f, x) in cases().items():
        cells = []
        for method in options.methods:
            print(f"{name}: {method}", file=sys.stderr, flush=True)
            r = run(f, x, method)
            failed = "" if r.success else f" {r.status.name}"
            cells.append(f"{r.nhev}, {r.njev}, {r.nfev}: {r.fun:.3g}{failed}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
