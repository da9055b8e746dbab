"""The command: which jobs, on which network, and where the report goes."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

import hesse
from benchmarks.machine import describe_machine
from benchmarks.models.classifier import classifier
from benchmarks.problem import Problem
from benchmarks.spectra import densities, diagonals, eigenvalues, systems, table, traces
from benchmarks.spectra.exact import Exact
from benchmarks.spectra.job import Job
from benchmarks.spectra.rounds import measure

JOBS: dict[str, Callable[[Problem, Exact], Job]] = {
    "eigenvalues": eigenvalues.job,
    "trace": traces.job,
    "density": densities.job,
    "diagonal": diagonals.job,
    "cg": systems.cg,
    "minres": systems.minres,
    "lsmr": systems.lsmr,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the report, and write it with the raw numbers."""
    options = _parser().parse_args(arguments or [])
    if options.threads:
        torch.set_num_threads(options.threads)
    # A compiler that finds its results of yesterday says nothing about a fresh operator.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    warnings.simplefilter("ignore")  # what fails is reported
    options.output.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(torch.get_num_threads()):  # of NumPy and SciPy
        _measure(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks spectra", description=__doc__)
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS), metavar="JOB",
                        help=f"of {', '.join(JOBS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a small network, one round")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved repetitions")
    parser.add_argument("--threads", type=int, help="threads of torch, NumPy and SciPy")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser


def _measure(options: argparse.Namespace) -> None:
    machine, problem = describe_machine(), classifier(options.quick)
    exact, results = Exact(problem), {}
    _warm_up(problem)
    for name in options.jobs:
        start = time.perf_counter()
        print(f"{name} ... ", end="", file=sys.stderr, flush=True)
        rows = measure(JOBS[name](problem, exact), 1 if options.quick else options.rounds)
        results[name] = rows
        table.write(options.output, machine, problem.n, results)
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(table.markdown(machine, problem.n, results))


def _warm_up(problem: Problem) -> None:
    """The first product of a process imports and starts much of torch."""
    hesse.hessian_operator(problem.f, problem.params) @ torch.ones(problem.n)
