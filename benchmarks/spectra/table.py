"""The report: a table for every job, and the two criteria."""

from __future__ import annotations

import json
import statistics
import textwrap
from pathlib import Path

from benchmarks.machine import one_line
from benchmarks.spectra.rounds import Row

WIDTH = 100

INTRODUCTION = """\
The Hessian of a classifier of {n:,} parameters at one point, on one batch, in eval mode. Times are
medians of interleaved rounds in one process, each with a seed of its own, and begin with the model:
what an operator prepares counts. `error` is against an answer in float64 by another route;
**bold**: beyond the target. `x Hesse` is the time over that of the first row."""

Results = dict[str, list[Row]]


def markdown(machine: dict, n: int, results: Results) -> str:
    """The whole report."""
    parts = ["# Spectra", one_line(machine), INTRODUCTION.format(n=n)]
    parts += [criteria(results), *map(section, results.values())]
    return "\n\n".join(parts) + "\n"


def section(rows: list[Row]) -> str:
    """The table of one job."""
    job, ours = rows[0].job, rows[0]
    lines = [
        f"## {job.title}",
        "",
        textwrap.fill(job.note, WIDTH),
        "",
        "| subject | products | seconds | rounds | error | x Hesse |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [_line(row, ours) for row in rows]
    return "\n".join(lines)


def _line(row: Row, ours: Row) -> str:
    if row.failed:
        return f"| {row.subject.name} | **failed**: {row.failed} | | | | |"
    error = f"{row.error:.1e}" if row.reached else f"**{row.error:.1e}**"
    ratio = "-" if ours.failed else f"{row.median / ours.median:.2f}"
    return (
        f"| {row.subject.name} | {row.count:g} | {row.median:.2f} | {len(row.seconds)} "
        f"| {error} | {ratio} |"
    )


def criteria(results: Results) -> str:
    """Hesse's products against the fewest of a peer, its seconds against half of their median."""
    lines = [
        "## Criteria",
        "",
        "Products: of the peers that reach the target. Seconds: of all that answer, since one that",
        "misses the target would need longer still.",
        "",
        "| job | products | fewest of a peer | no more | seconds | median peer | at most half |",
        "|---|--:|--:|---|--:|--:|---|",
    ]
    lines += [_verdicts(name, rows) for name, rows in results.items()]
    return "\n".join(lines)


def _verdicts(name: str, rows: list[Row]) -> str:
    ours = rows[0]
    peers = [row for row in rows if row.subject.library != "Hesse" and not row.failed]
    if not ours.reached or not any(peer.reached for peer in peers):
        return f"| {name} | {'no peer' if ours.reached else 'Hesse misses the target'} | | | | | |"
    fewest = min(peer.count for peer in peers if peer.reached)
    middle = statistics.median(peer.median for peer in peers)
    return (
        f"| {name} | {ours.count:g} | {fewest:g} | {_yes(ours.count <= fewest)} "
        f"| {ours.median:.2f} | {middle:.2f} | {_yes(ours.median <= middle / 2)} |"
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def write(folder: Path, machine: dict, n: int, results: Results) -> None:
    """spectra.md and spectra.json."""
    (folder / "spectra.md").write_text(markdown(machine, n, results), encoding="utf-8")
    raw = {
        name: [
            {
                "subject": row.subject.name,
                "seconds": row.seconds,
                "products": row.products,
                "errors": row.errors,
                "failed": row.failed,
            }
            for row in rows
        ]
        for name, rows in results.items()
    }
    text = json.dumps({"machine": machine, "n": n, "jobs": raw}, indent=1)
    (folder / "spectra.json").write_text(text + "\n", encoding="utf-8")
