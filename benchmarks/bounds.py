# SPDX-License-Identifier: Apache-2.0
"""Bounds on variables: `minimize` beside SciPy, on smooth problems whose minimum is cut off.

Every second variable of a problem gets an upper bound below its value at the unbounded minimum.
"""

from __future__ import annotations

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import hesse
from benchmarks.suite.counted import Counted, OverLimit
from benchmarks.suite.solvers import AtOnePoint
from hesse.testing import Problem, smooth_problems

MAX_ITERATIONS = 5000
TOLERANCE = 1e-8
# Solved: the projected gradient and the value above the lowest that any solver found, relative to
# those at the start.
_GRADIENT, _VALUE = 1e-6, 1e-6


@dataclass(frozen=True)
class Boxed:
    """f below an upper bound."""

    name: str
    f: Callable[[Tensor], Tensor]
    x: Tensor
    upper: Tensor

    @property
    def pairs(self) -> list[tuple[None, float]]:
        """The bounds as SciPy takes them."""
        return [(None, bound) for bound in self.upper.tolist()]

    def slope(self, x: Tensor) -> float:
        """The norm of the projected gradient."""
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(self.f(leaf), leaf)
        return float((x - torch.minimum(x - g, self.upper)).norm())


def boxed(problem: Problem) -> Boxed | None:
    """The problem with bounds; None where no minimum is found, or it has a tree of variables."""
    if not isinstance(problem.x, Tensor) or problem.x.ndim != 1:
        return None
    result: Any = hesse.minimize(problem.f, problem.x)
    if not result.success:
        return None
    upper = torch.full_like(problem.x, math.inf)
    upper[::2] = (result.x - 0.1 * result.x.abs().clamp(min=1.0))[::2]
    return Boxed(problem.name, problem.f, torch.minimum(problem.x, upper), upper)


def with_hesse(method: Any) -> Callable[[Counted, Boxed], Tensor]:
    """A method of Hesse that takes bounds, with its certificate."""

    def solve(f: Counted, problem: Boxed) -> Tensor:
        return hesse.minimize(
            f, problem.x, method, bounds=(None, problem.upper), mode="retained-graph",
            max_iterations=MAX_ITERATIONS,
        ).x  # fmt: skip

    return solve


def with_scipy(method: str) -> Callable[[Counted, Boxed], Tensor]:
    """A method of SciPy that takes bounds, with the same tolerance of the largest entry."""

    def solve(f: Counted, problem: Boxed) -> Tensor:
        from scipy.optimize import minimize

        at = AtOnePoint(f)
        gtol = TOLERANCE * min(problem.slope(problem.x), 1.0) / len(problem.x) ** 0.5
        options = {"gtol": gtol, "ftol": 0.0, "maxfun": 100_000, "maxiter": MAX_ITERATIONS}
        if method == "TNC":
            options |= {"xtol": 0.0}
            del options["maxiter"]
        found = minimize(
            at.value, problem.x.numpy(), method=method, jac=at.gradient, bounds=problem.pairs,
            options=options,
        )  # fmt: skip
        return torch.from_numpy(found.x)

    return solve


SOLVERS: dict[str, Callable[[Counted, Boxed], Tensor]] = {
    "hesse, the default": with_hesse("auto"),
    "hesse trust-cg": with_hesse("trust-cg"),
    "scipy L-BFGS-B": with_scipy("L-BFGS-B"),
    "scipy TNC": with_scipy("TNC"),
}


@dataclass(frozen=True)
class Run:
    """Where a solver ended, and what it took."""

    value: float
    slope: float
    cost: float
    seconds: float


def run(solver: str, problem: Boxed, max_seconds: float) -> Run:
    """One solver on one problem."""
    f = Counted(problem.f, max_cost=1e5, max_seconds=max_seconds)
    try:
        x = SOLVERS[solver](f, problem)
    except OverLimit:
        x = torch.minimum(f.best(problem.x), problem.upper)
    return Run(float(problem.f(x)), problem.slope(x), f.counts.cost, f.seconds)


def solved(problem: Boxed, runs: dict[str, Run]) -> dict[str, bool]:
    """Which solvers found the lowest value, at a point with a small projected gradient."""
    start, lowest = float(problem.f(problem.x)), min(r.value for r in runs.values())
    slope = problem.slope(problem.x)
    return {
        name: r.value <= lowest + _VALUE * max(start - lowest, 0.0) and r.slope <= _GRADIENT * slope
        for name, r in runs.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser("python -m benchmarks bounds", description=__doc__)
    parser.add_argument("--every", type=int, default=3, help="take every third problem, say")
    parser.add_argument("--max-seconds", type=float, default=20.0, help="of one run")
    options = parser.parse_args(arguments or [])
    warnings.simplefilter("ignore")
    results = []
    for problem in smooth_problems()[:: options.every]:
        print(problem.name, file=sys.stderr, flush=True)
        cut = boxed(problem)
        if cut is not None:
            runs = {name: run(name, cut, options.max_seconds) for name in SOLVERS}
            results.append((runs, solved(cut, runs)))
    print(table(results))


def table(results: list[tuple[dict[str, Run], dict[str, bool]]]) -> str:
    """Solved problems, and geometric means of ratios to Hesse where both solved one."""
    head = "| solver | problems | solved | gradients / Hesse | seconds / Hesse |"
    rows, first = [head, "|---|--:|--:|--:|--:|"], next(iter(SOLVERS))
    for name in SOLVERS:
        both = [runs for runs, is_solved in results if is_solved[name] and is_solved[first]]
        cost = _mean_ratio([(runs[name].cost, runs[first].cost) for runs in both])
        seconds = _mean_ratio([(runs[name].seconds, runs[first].seconds) for runs in both])
        count = sum(is_solved[name] for _, is_solved in results)
        rows.append(f"| {name} | {len(results)} | {count} | {cost:.2f} | {seconds:.2f} |")
    return "\n".join(rows)


def _mean_ratio(pairs: list[tuple[float, float]]) -> float:
    """The geometric mean of a / b."""
    return math.exp(sum(math.log(a / b) for a, b in pairs) / max(len(pairs), 1))
