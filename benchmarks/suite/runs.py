# SPDX-License-Identifier: Apache-2.0
"""All runs of all solvers: those of the file, and the others from processes that may be killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.suite.peers import ENVIRONMENT

_START = re.compile(r'\{"solver": "([^"]*)", "problem": "([^"]*)"')
# A process is given up if it writes nothing for so many times the limit of a run, and a minute:
# that is seconds of the processor, which a busy machine shares out.
_PATIENCE, _GRACE = 4.0, 60.0


def records(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(solver, problem) -> its run, as far as there are any in the file."""
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            run = json.loads(line)
        except json.JSONDecodeError:  # the process ended while it wrote
            continue
        found[run["solver"], run["problem"]] = run
    return found


def finished(path: Path) -> set[tuple[str, str]]:
    """(solver, problem) of each run in the file, read off the beginning of its line."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8") as file:
        starts = [line[:300] for line in file if line.endswith("}\n")]
    return {(match[1], match[2]) for match in map(_START.match, starts) if match}


def complete(
    path: Path, solver: str, problems: list[str], *, max_cost: float, max_seconds: float
) -> None:
    """Run one solver on the problems that the file has no run of."""
    while missing := [p for p in problems if (solver, p) not in finished(path)]:
        command = [sys.executable, "-m", "benchmarks.suite.worker", solver, str(path)]
        command += [str(max_cost), str(max_seconds), *missing]
        worker = subprocess.Popen(
            command,
            env=os.environ | (ENVIRONMENT if solver.startswith("galahad") else {}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            how = _watch(worker, path, _PATIENCE * max_seconds + _GRACE, solver, problems)
        finally:
            worker.kill()
            worker.wait()
        missing = [p for p in problems if (solver, p) not in finished(path)]
        if missing:  # it did not get beyond this one
            _write(path, {"solver": solver, "problem": missing[0], **_no_result(how)})


def _watch(
    worker: subprocess.Popen, path: Path, patience: float, solver: str, problems: list[str]
) -> str:
    """Wait for the end of the process, or until it has written nothing for too long."""
    size, since = -1, time.monotonic()
    while worker.poll() is None:
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, since, found = now, time.monotonic(), finished(path)
            done = sum((solver, problem) in found for problem in problems)
            print(f"\r{solver:22} {done:4} of {len(problems)}", end="", file=sys.stderr, flush=True)
        if time.monotonic() - since > patience:
            return "did not return"
        time.sleep(1.0)
    print(file=sys.stderr)
    return f"the process ended with {worker.returncode}"


def _write(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _no_result(how: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("seconds", "cost", "values", "gradients", "products", "n"), 0)
    return {
        **nothing, "claims": False, "message": how, "error": how,
        "verdict": {"kind": "no result"}, "path": [],
    }  # fmt: skip
