# SPDX-License-Identifier: Apache-2.0
"""One solver on several problems, in a process of its own, which may be killed.

`python -m benchmarks.suite.worker SOLVER FILE MAX_COST MAX_SECONDS PROBLEM ...` appends a line of
JSON for each problem.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.suite.counted import Counted, OverLimit
from benchmarks.suite.peers import installed
from benchmarks.suite.solvers import HESSE, SCIPY, Ending, Solver
from benchmarks.suite.verdict import Verdict, verdict
from hesse.testing import Problem, smooth_problems


def run(solver: Solver, problem: Problem, max_cost: float, max_seconds: float) -> dict[str, Any]:
    """What one solver does on one problem."""
    f = Counted(problem.f, max_cost, max_seconds)
    x = problem.space.flatten(problem.x).clone()
    error = ""
    try:
        ending = solver(f, x)
    except OverLimit:
        ending = Ending(f.best(x), False, "limit of cost or seconds")
    except Exception as caught:  # of any library: it is the result
        error = f"{type(caught).__name__}: {caught}"[:200]
        ending = Ending(f.best(x), False, f"raised {type(caught).__name__}")
    seconds = f.seconds
    return {
        "n": problem.space.n,
        "claims": ending.claims,
        "message": ending.message,
        "error": error,
        "seconds": seconds,
        "cost": f.counts.cost,
        **asdict(f.counts),
        "verdict": asdict(_verdict(problem, ending.x)),
        "path": [[s.value, s.cost, s.products, round(s.seconds, 4)] for s in f.path],
    }


def _verdict(problem: Problem, x: torch.Tensor) -> Verdict:
    try:
        return verdict(problem, x)
    except (ArithmeticError, ValueError, RuntimeError):
        return Verdict("not finite")


def main(arguments: list[str]) -> None:
    """Run the problems that are named."""
    name, path, max_cost, max_seconds, *names = arguments
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    solver = (HESSE | SCIPY | installed()[0])[name]
    problems = {problem.name: problem for problem in smooth_problems()}
    first = problems["mgh_rosenbrock"]
    run(solver, first, 100.0, 30.0)  # imports, compilers
    for problem in names:
        record = {"solver": name, "problem": problem}
        record |= run(solver, problems[problem], float(max_cost), float(max_seconds))
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
