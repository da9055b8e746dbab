# SPDX-License-Identifier: Apache-2.0
"""The command: run what the file lacks, then write the table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.large.functions import FUNCTIONS
from benchmarks.large.job import SOLVERS
from benchmarks.machine import describe_machine, one_line
from benchmarks.suite.peers import ENVIRONMENT, installed

_HEADER = """\
| function | n | solver | seconds | products | vectors at the peak | gradient | value | ended |
|---|--:|---|--:|--:|--:|--:|--:|---|"""


def main(arguments: list[str] | None = None) -> None:
    """Run, resume, and report."""
    options = _parser().parse_args(arguments or [])
    peers, _ = installed()
    names = [s for s in SOLVERS if s in peers or not s.startswith("galahad")]
    names = [s for s in names if any(fnmatchcase(s, p) for p in options.solvers)]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "large.jsonl"
    runs = _read(path)
    for function in options.functions:
        for solver in names:
            side = round(options.n**0.5)
            n = options.n if function == "chain" else side * side
            if (function, n, solver) not in runs:
                print(f"{function}, n = {n:,}: {solver}", file=sys.stderr, flush=True)
                runs[function, n, solver] = _run(path, solver, function, n, options.max_seconds)
    rows = [_row(run) for run in runs.values()]
    text = "\n".join([one_line(describe_machine()), "", _HEADER, *rows])
    (options.output / "large.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _read(path: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines]
    return {(run["function"], run["n"], run["solver"]): run for run in runs}


def _run(path: Path, solver: str, function: str, n: int, max_seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.large.job", solver, function, str(n)]
    found = subprocess.run(
        [*command, str(max_seconds)],
        env=os.environ | (ENVIRONMENT if solver.startswith("galahad") else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = found.stdout.strip().splitlines()
    if found.returncode == 0 and lines:
        run = json.loads(lines[-1])
    else:
        last = (found.stderr.strip().splitlines() or [f"status {found.returncode}"])[-1]
        run = {"solver": solver, "function": function, "n": n, "message": last[:80]}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")
    return run


def _row(run: dict[str, Any]) -> str:
    if "seconds" not in run:
        return (
            f"| {run['function']} | {run['n']:,} | {run['solver']} | | | | | | {run['message']} |"
        )
    return (
        f"| {run['function']} | {run['n']:,} | {run['solver']} | {run['seconds']:.1f} "
        f"| {run['products']} | {run['vectors']:.0f} | {run['gradient']:.1e} "
        f"| {run['value']:.10g} | {run['message']} |"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks large", description=__doc__)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, default=list(FUNCTIONS))
    parser.add_argument("--solvers", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--n", type=int, default=250_000, help="variables, such as 1000000")
    parser.add_argument("--max-seconds", type=float, default=600.0, help="of one run")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser
