"""`least_squares` beside SciPy's, with the same exact Jacobians: evaluations and seconds."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import hesse
from hesse.testing import Problem, smooth_problems

PROBLEMS = (
    "mgh_rosenbrock", "wood", "meyer", "kowalik_osborne", "osborne_2", "brown_dennis",
    "chebyquad(n=8)", "broyden_banded(n=10)", "neural_network", "discrete_integral(n=100)",
)  # fmt: skip
LARGE = ("broyden_tridiagonal(n=1000)", "extended_rosenbrock(n=1000)", "bratu(n=400)")
TOLERANCES = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-10)


@dataclass(frozen=True)
class Row:
    """One fit; the seconds are the shortest of several runs."""

    cost: float
    evaluations: int
    jacobians: int
    products: int | None
    seconds: float


def fit_with_hesse(problem: Problem, method: str) -> Callable[[], Row]:
    """A run of `hesse.least_squares`."""

    def run() -> Row:
        began = time.perf_counter()
        result = hesse.least_squares(problem.residuals, problem.x, method, **TOLERANCES)
        seconds = time.perf_counter() - began
        return Row(result.cost, result.nfev, result.njev, result.products, seconds)

    return run


def fit_with_scipy(problem: Problem, method: str) -> Callable[[], Row]:
    """A run of SciPy's trust region ("exact"), its LSMR ("lsmr") or MINPACK ("minpack")."""
    from scipy.optimize import least_squares
    from scipy.sparse.linalg import LinearOperator

    r, products = problem.residuals, [0]
    assert r is not None

    def residuals(x: np.ndarray) -> np.ndarray:
        return r(torch.from_numpy(x)).numpy()

    def matrix(x: np.ndarray) -> np.ndarray:
        return torch.func.jacrev(r)(torch.from_numpy(x)).numpy()

    def operator(x: np.ndarray) -> LinearOperator:
        point = torch.from_numpy(x)
        rows, pull_back = torch.func.vjp(r, point)

        def matvec(v: np.ndarray) -> np.ndarray:
            products[0] += 1
            return torch.func.jvp(r, (point,), (torch.from_numpy(v.ravel()),))[1].numpy()

        def rmatvec(u: np.ndarray) -> np.ndarray:
            products[0] += 1
            return pull_back(torch.from_numpy(u.ravel()))[0].numpy()

        return LinearOperator((len(rows), len(x)), matvec, rmatvec, dtype=float)

    options = {"x_scale": "jac", "jac": matrix}
    if method == "minpack":
        options["method"] = "lm"
    if method == "lsmr":
        options = {"jac": operator, "tr_solver": "lsmr"}

    def run() -> Row:
        products[0], began = 0, time.perf_counter()
        result = least_squares(residuals, problem.x.numpy(), max_nfev=2000, **options, **TOLERANCES)
        seconds = time.perf_counter() - began
        taken = products[0] if method == "lsmr" else None
        return Row(float(result.cost), result.nfev, result.njev or 0, taken, seconds)

    return run


def main(arguments: list[str] | None = None) -> None:
    """Print one table for small problems and one for large ones."""
    parser = argparse.ArgumentParser("python -m benchmarks least-squares", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs; the shortest one counts")
    options = parser.parse_args(arguments or [])
    problems = {problem.name: problem for problem in smooth_problems()}
    small = {
        "Hesse, svd": (fit_with_hesse, "svd"),
        "SciPy, trf": (fit_with_scipy, "exact"),
        "SciPy, MINPACK": (fit_with_scipy, "minpack"),
    }
    large = {"Hesse, lsmr": (fit_with_hesse, "lsmr"), "SciPy, lsmr": (fit_with_scipy, "lsmr")}
    _table([problems[name] for name in PROBLEMS], small, options.repeats)
    print()
    _table([problems[name] for name in LARGE], large, options.repeats)


def _table(problems: list[Problem], fits: dict, repeats: int) -> None:
    print("| problem | fit | cost | evaluations of r | Jacobians | products | ms |")
    print("|---|---|--:|--:|--:|--:|--:|")
    logs: dict[str, list[tuple[float, float]]] = {name: [] for name in fits}
    for problem in problems:
        runs = {name: make(problem, method) for name, (make, method) in fits.items()}
        rows = [{name: run() for name, run in runs.items()} for _ in range(repeats)]  # interleaved
        for name in fits:
            best = min((each[name] for each in rows), key=lambda row: row.seconds)
            products = "" if best.products is None else best.products
            print(
                f"| {problem} | {name} | {best.cost:.6g} | {best.evaluations} | {best.jacobians} "
                f"| {products} | {1000 * best.seconds:.1f} |",
                flush=True,
            )
            logs[name].append((math.log(max(best.jacobians, 1)), math.log(best.seconds)))
    for name, values in logs.items():
        jacobians, seconds = (
            math.exp(float(np.mean(column))) for column in zip(*values, strict=True)
        )
        print(f"| geometric mean | {name} | | | {jacobians:.1f} | | {1000 * seconds:.1f} |")
