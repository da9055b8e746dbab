"""The studies as a Markdown report and as raw numbers."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engine.study import Cell, Study
from benchmarks.machine import one_line

INTRODUCTION = """\
Times are medians of interleaved rounds in one process; memory is that of the tensors that are made
(`hesse.testing.PeakMemory`), in units of the gradient's peak. Parameters, data and directions are
not counted."""

Results = dict[str, tuple[Study, list[list[Cell]]]]
"""By the name of the study: the study and its rows."""


def markdown(machine: dict, results: Results) -> str:
    """The whole report."""
    sections = [section(study, rows) for study, rows in results.values()]
    return "\n\n".join(["# Engine", one_line(machine), INTRODUCTION, *sections]) + "\n"


def section(study: Study, rows: list[list[Cell]]) -> str:
    """The table of one study."""
    lines = [f"## {study.title}", "", study.note, "", f"| {' | '.join(study.columns)} |"]
    lines.append(f"|---|{'--:|' * (len(study.columns) - 1)}")
    lines += [f"| {' | '.join(map(_text, row))} |" for row in rows]
    return "\n".join(lines)


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else f"{cell:,.3g}" if cell < 100 else f"{cell:,.0f}"


def write(folder: Path, machine: dict, results: Results) -> None:
    """engine.md and engine.json."""
    (folder / "engine.md").write_text(markdown(machine, results), encoding="utf-8")
    raw = {
        name: [dict(zip(study.columns, row, strict=True)) for row in rows]
        for name, (study, rows) in results.items()
    }
    text = json.dumps({"machine": machine, "studies": raw}, indent=1)
    (folder / "engine.json").write_text(text + "\n", encoding="utf-8")
