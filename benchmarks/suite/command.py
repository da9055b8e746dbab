# SPDX-License-Identifier: Apache-2.0
"""The command: run what is missing, then write tables and a plot."""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.machine import describe_machine, one_line
from benchmarks.suite.peers import installed
from benchmarks.suite.profiles import draw
from benchmarks.suite.runs import complete, records
from benchmarks.suite.solvers import HESSE, SCIPY
from benchmarks.suite.tables import markdown
from hesse.testing import smooth_problems


def main(arguments: list[str] | None = None) -> None:
    """Run, resume, and report."""
    options = _parser().parse_args(arguments or [])
    peers, missing = installed()
    for name in missing:
        print(f"{name} is not installed: left out", file=sys.stderr)
    names = [s for s in HESSE | SCIPY | peers if _matches(s, options.solvers)]
    problems = [p.name for p in smooth_problems() if _matches(p.name, options.problems)]
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "suite.jsonl"
    if options.again and path.exists():
        path.unlink()
    if not options.report_only:
        for solver in names:
            complete(
                path, solver, problems,
                max_cost=options.max_cost, max_seconds=options.max_seconds,
            )  # fmt: skip
    runs = {key: run for key, run in records(path).items() if key[0] in names}
    runs = {key: run for key, run in runs.items() if key[1] in problems}
    text = f"{one_line(describe_machine())}\n\n{markdown(runs)}"
    (options.output / "suite.md").write_text(text, encoding="utf-8")
    draw(runs, options.output / "suite.png")
    print(text)


def _matches(name: str, patterns: list[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, p) or name == p for p in patterns)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks suite", description=__doc__)
    parser.add_argument("--solvers", nargs="+", metavar="PATTERN", help="such as 'hesse *'")
    parser.add_argument("--problems", nargs="+", metavar="PATTERN")
    parser.add_argument("--max-cost", type=float, default=1e5, help="of one run, in gradients")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of one run")
    parser.add_argument("--again", action="store_true", help="forget the runs of the file")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser
