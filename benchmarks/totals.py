"""Seconds for 1, 10, 100 and 1000 products in a fresh process, everything included.

The default mode (`auto`) against each other mode: the default decides before it knows how many
products will follow. The clock runs from the call that makes the operator,
after one gradient has warmed torch up.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.machine import describe_machine, one_line
from benchmarks.models import MODELS
from benchmarks.options import chosen, parse, parser
from benchmarks.subjects.subject import Subject

COUNTS = (1, 10, 100, 1000)
DEFAULT = "hesse/hessian/auto"
SUBJECTS = [
    DEFAULT,
    "hesse/hessian/retained-graph",
    "hesse/hessian/traced-split",
    "hesse/hessian/compiled-split",
    "hesse/hessian/reverse-over-reverse",
    "hesse/hessian/forward-over-reverse",
    "hesse/hessian/reverse-over-forward",
]
NOTE = "~: extrapolated from the last products before the time limit."

PATIENCE = 600.0
"""Seconds beyond the limit after which a process is stopped: compiling is not interrupted."""

Records = dict[str, dict]
"""By subject: {"seconds": {count: total}, "measured": products}, or {"failed": reason}."""


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table for every model, and write all of them."""
    options = parse(_parser(), arguments or [])
    machine, subjects = describe_machine(), chosen(options.subjects or SUBJECTS)
    records: dict[str, Records] = {}
    for model in options.models or MODELS:
        records[model] = {s.name: _totals(model, s, options) for s in subjects}
        print(section(model, records[model]), end="\n\n", flush=True)
        _write(options.output, machine, records)
    print(summary(records))


def _parser():
    options = parser("totals", __doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=1, help="processes; the median is kept")
    options.add_argument("--limit", type=float, default=20.0, help="seconds for a process, about")
    return options


def _totals(model: str, subject: Subject, options) -> dict:
    """What the worker says; the medians of several."""
    runs = [_process(model, subject, options.limit) for _ in range(options.repeats)]
    failed = [run for run in runs if "failed" in run]
    if failed:
        return failed[0]
    seconds = {n: statistics.median(run["seconds"][n] for run in runs) for n in runs[0]["seconds"]}
    return {"seconds": seconds, "measured": min(run["measured"] for run in runs)}


def _process(model: str, subject: Subject, limit: float) -> dict:
    command = [sys.executable, "-m", "benchmarks.totals_worker", model, subject.name]
    command += [str(limit), str(torch.get_num_threads()), *map(str, COUNTS)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit + PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        return {"failed": f"stopped after {error.timeout:.0f} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        return {"failed": lines[-1]}
    return json.loads(done.stdout.splitlines()[-1])


# --------------------------------------------------------------------------------------------------
# The report


def section(model: str, records: Records) -> str:
    """The table of one model; in its last row the default over the best of the others."""
    rows = [f"## {model}", "", f"| subject | {' | '.join(map(str, COUNTS))} | measured |"]
    rows.append(f"|---|{'--:|' * (len(COUNTS) + 1)}")
    for name, record in records.items():
        if "seconds" in record:
            cells = [f"{_mark([record], n)}{record['seconds'][str(n)]:.3g}" for n in COUNTS]
            rows.append(f"| {name} | {' | '.join(cells)} | {record['measured']} |")
    rows.append(f"| **auto / best in hindsight** | {' | '.join(_regrets(records))} | |")
    failed = [f"- {name}: {r['failed']}" for name, r in records.items() if "failed" in r]
    return "\n".join([*rows, "", *failed]).rstrip()


def summary(records: dict[str, Records]) -> str:
    """The ratios of all models, with geometric means and the worst."""
    rows = ["## auto / best in hindsight", "", f"| model | {' | '.join(map(str, COUNTS))} |"]
    rows.append(f"|---|{'--:|' * len(COUNTS)}")
    rows += [f"| {model} | {' | '.join(_regrets(ours))} |" for model, ours in records.items()]
    columns = [[r for ours in records.values() if (r := regret(ours, n))] for n in COUNTS]
    for what, kind in (("geometric mean", statistics.geometric_mean), ("worst", max)):
        cells = [f"{kind(column):.2f}" if column else "-" for column in columns]
        rows.append(f"| **{what}** | {' | '.join(cells)} |")
    return "\n".join(rows)


def regret(records: Records, count: int) -> float | None:
    """The default's total over that of the best mode; None if it or they failed."""
    best, default = _best(records, count), records.get(DEFAULT, {})
    if best is None or "seconds" not in default:
        return None
    return default["seconds"][str(count)] / best["seconds"][str(count)]


def _regrets(records: Records) -> list[str]:
    """A cell for every count: the ratio and the best mode."""
    cells = []
    for count in COUNTS:
        ratio, best = regret(records, count), _best(records, count)
        if ratio is None or best is None:
            cells.append("-")
            continue
        name = next(name for name, record in records.items() if record is best)
        mark = _mark([best, records[DEFAULT]], count)
        cells.append(f"{mark}{ratio:.2f} ({name.rpartition('/')[2]})")
    return cells


def _best(records: Records, count: int) -> dict | None:
    """The record of the fastest of Hesse's fixed modes."""
    modes = [
        record
        for name, record in records.items()
        if name.startswith("hesse/") and name != DEFAULT and "seconds" in record
    ]
    return min(modes, key=lambda record: record["seconds"][str(count)], default=None)


def _mark(records: list[dict], count: int) -> str:
    return "~" if any(record["measured"] < count for record in records) else ""


def _write(folder: Path, machine: dict, records: dict[str, Records]) -> None:
    parts = ["# Totals", one_line(machine), (__doc__ or "").strip(), NOTE, summary(records)]
    parts += [section(model, ours) for model, ours in records.items()]
    (folder / "totals.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    raw = {"machine": machine, "totals": records}
    (folder / "totals.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
