# SPDX-License-Identifier: Apache-2.0
"""A campaign: case after case in child processes, its progress saved after every case or so."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tools.fuzz.cases import Case, from_json, to_json
from tools.fuzz.draw import draw
from tools.fuzz.judge import FAULTS, normalised
from tools.fuzz.script import script
from tools.fuzz.shrink import shrink
from tools.fuzz.worker import rows_of

CHUNK = 2000
_EXAMPLES = 12  # seeds that are kept of each kind
_SHRUNK = 3  # faults of each kind that are shrunk


@dataclass
class Progress:
    """What has been found so far, as it is saved."""

    seed: int
    next: int
    cases: int = 0
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For every kind of refusal and fault: how often, and in which cases."""

    def add(self, seed: int, rows: list[list[str]]) -> list[tuple[str, str, str]]:
        """Count a case; the faults to shrink, as (kind, check, verdict)."""
        self.cases, self.next, new = self.cases + 1, seed + 1, []
        for check, verdict, detail in rows:
            self.verdicts[verdict] += 1
            if verdict == "right" and not detail:
                continue
            kind = f"{verdict}: {_without_mode(check, verdict)}: {normalised(detail)[:120]}"
            found = self.details.setdefault(kind, {"count": 0, "seeds": [], "verdict": verdict})
            found["count"] += 1
            if len(found["seeds"]) < _EXAMPLES and seed not in found["seeds"]:
                found["seeds"].append(seed)
            if verdict in FAULTS and found["count"] <= _SHRUNK:
                new.append((kind, check, verdict))
        return new


def _without_mode(check: str, verdict: str) -> str:
    return check if verdict in FAULTS else check.rsplit(" ", 1)[-1]


def run(folder: Path, seed: int, seconds: float, cases: float, shrinks: bool = True) -> Progress:
    """Go on with the campaign in a folder until the time or the cases are used up."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = load(folder, seed)
    start = saved = time.monotonic()
    before, done = progress.seconds, 0
    try:
        while time.monotonic() - start < seconds and done < cases:
            for case_seed, rows in _chunk(progress.next, int(min(CHUNK, cases - done))):
                new = progress.add(case_seed, rows)
                done += 1
                progress.seconds = before + time.monotonic() - start
                if shrinks:
                    for kind, check, verdict in new:
                        _save_in_child(folder, case_seed, kind, check, verdict)
                if time.monotonic() - saved > 5:
                    save(folder, progress)
                    saved = time.monotonic()
                if time.monotonic() - start > seconds:
                    break
    except KeyboardInterrupt:
        print("interrupted; the next run continues here", file=sys.stderr)
    save(folder, progress)
    return progress


def load(folder: Path, seed: int) -> Progress:
    """The progress in a folder, or a new one."""
    path = folder / "progress.json"
    if not path.exists():
        return Progress(seed, seed)
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["seed"] != seed:
        return Progress(seed, seed)
    return Progress(**{**data, "verdicts": Counter(data["verdicts"])})


def save(folder: Path, progress: Progress) -> None:
    """Replace the progress in a folder."""
    path = folder / "progress.json"
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(vars(progress), indent=1), encoding="utf-8")
    temporary.replace(path)


# --------------------------------------------------------------------------------------------------
# Children


def _chunk(first: int, count: int) -> Iterator[tuple[int, list[list[str]]]]:
    """(seed, rows) of some cases; a crash ends the chunk."""
    command = [sys.executable, "-m", "tools.fuzz.worker", str(first), str(count)]
    return rows_of_process(command)


def rows_of_process(command: list[str]) -> Iterator[tuple[int, list[list[str]]]]:
    """(seed, rows) of the cases that a process judges; a crash is the row of its case."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        begun, done = None, False
        try:
            assert child.stdout is not None
            for line in child.stdout:
                message = json.loads(line)
                if "begin" in message:
                    begun = message["begin"]
                else:
                    begun = None
                    yield message["seed"], message["rows"]
            done = True
        finally:
            if not done:
                child.terminate()
        errors = child.stderr.read() if child.stderr is not None else ""
        child.wait()
    if begun is not None:
        yield begun, [["", *_end(child.returncode, errors)]]
    elif child.returncode != 0:
        raise RuntimeError(errors[-2000:])


def _end(status: int, errors: str) -> tuple[str, str]:
    return "hung" if "Timeout" in errors else "crashed", f"status {status}: {errors[-400:]}"


def _rows_of_child(case: Case) -> list[list[str]]:
    command = [sys.executable, "-m", "tools.fuzz.worker"]
    child = subprocess.run(
        command, input=json.dumps(to_json(case)), capture_output=True, text=True, check=False
    )
    if child.returncode:
        return [["", *_end(child.returncode, child.stderr)]]
    return json.loads(child.stdout.splitlines()[-1])["rows"]


# --------------------------------------------------------------------------------------------------
# Faults


def shrunk(case: Case, check: str, verdict: str) -> Case:
    """The smallest case that shows this verdict of this check."""
    in_child = verdict in ("crashed", "hung")

    def shows(smaller: Case) -> bool:
        rows = _rows_of_child(smaller) if in_child else rows_of(smaller)
        return any(row[1] == verdict for row in rows)

    if check:
        case = replace(case, checks=(check,))
    elif in_child:
        for name in case.checks:
            if shows(replace(case, checks=(name,))):
                case = replace(case, checks=(name,))
                break
    return shrink(case, shows, 40 if in_child else 400)


def _save_in_child(folder: Path, seed: int, kind: str, check: str, verdict: str) -> None:
    """As `save_fault`; what crashes torch itself ends the child alone."""
    command = [sys.executable, "-m", "tools.fuzz.campaign", folder, seed, kind, check, verdict]
    subprocess.run([str(part) for part in command], check=False)


def save_fault(folder: Path, case: Case, kind: str, check: str, verdict: str) -> None:
    """Write a fault, shrunk, as data and as a script."""
    small = shrunk(case, check, verdict)
    check = check or small.checks[0]
    path = folder / f"{verdict}-{case.seed}-{check.replace(' ', '-')}"
    data = {"kind": kind, "verdict": verdict, "case": to_json(small)}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"{verdict}: {path}.py", file=sys.stderr)
    path.with_suffix(".py").write_text(script(small, check, verdict), encoding="utf-8")


def read_case(path: Path) -> Case:
    """The case of a file."""
    return from_json(json.loads(path.read_text(encoding="utf-8"))["case"])


if __name__ == "__main__":
    save_fault(Path(sys.argv[1]), draw(int(sys.argv[2])), *sys.argv[3:])
