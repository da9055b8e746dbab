"""`precision=`: the time and the error of a product in "high" and "medium" against "highest"."""

from __future__ import annotations

import hesse
from benchmarks.case import Case
from benchmarks.engine.study import THREE, Cell, Settings, Study, ratio
from benchmarks.models import MODELS
from benchmarks.subjects.subject import InProcess, Run, flat
from hesse.curvature.operator import CurvatureOperator

PRECISIONS = ("highest", "high", "medium")


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row for each precision."""
    problem = MODELS[model]()
    case = Case.of(problem)
    operators = {
        name: hesse.hessian_operator(problem.f, problem.params, mode="traced-split", precision=name)
        for name in PRECISIONS
    }
    times = settings.measure(case, {name: _run(case, H) for name, H in operators.items()})
    return [
        [
            *(model, name, 1e3 * mine.median, ratio(mine, times["highest"])),
            *(f"{mine.error:.1e}", _said(operators[name])),
        ]
        for name, mine in times.items()
    ]


def _run(case: Case, H: hesse.LinearOperator) -> Run:
    return InProcess(lambda: H @ case.v, flat)


def _said(H: CurvatureOperator) -> str | None:
    """What the plan says of the precision."""
    notes = [note for note in H.plan.notes if note.startswith("precision=")]
    return notes[0].partition(": ")[2] if notes else None


STUDY = Study(
    "Precision",
    "Time of a product by `traced-split` over that in full precision, its relative error against "
    "float64, and what `H.plan` says of it.",
    ("model", "precision", "ms", "time / highest", "error", "plan"),
    THREE,
    rows,
)
