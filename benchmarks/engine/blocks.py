"""Eight directions at once by each rung: what one of them costs, against one alone."""

from __future__ import annotations

from benchmarks.case import BLOCK, Case
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.measure import Measurement, measure
from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.rungs import REPEATED


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row for every rung."""
    rungs = [rung for rung in REPEATED if settings.compiled or rung != "compiled-split"]
    names = [f"hesse/{quantity}/{rung}" for rung in rungs for quantity in ("hessian", "ggn")]
    subjects = [SUBJECTS[name + suffix] for name in names for suffix in ("", f"/{BLOCK}")]
    case = Case.of(MODELS[model]())
    measured = measure(case, subjects, settings.repeats, settings.seconds)
    times = {m.subject.name: m for m in measured}
    return [
        [model, rung, *_pair(times, f"hesse/hessian/{rung}"), *_pair(times, f"hesse/ggn/{rung}")]
        for rung in rungs
    ]


def _pair(times: dict[str, Measurement], name: str) -> tuple[Cell, Cell]:
    """Milliseconds of a single product, and a direction of a block over it."""
    single, block = times[name], times[f"{name}/{BLOCK}"]
    if not single.valid or not block.valid:
        return None, None
    return 1e3 * single.median, block.median / BLOCK / single.median


STUDY = Study(
    "Blocks",
    f"Milliseconds of a single product, and the time of a direction among {BLOCK} over it.",
    ("model", "rung", "H v ms", f"H V / {BLOCK} H v", "G v ms", f"G V / {BLOCK} G v"),
    tuple(MODELS),
    rows,
)
