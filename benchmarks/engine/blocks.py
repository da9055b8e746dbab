"""Eight directions at once by each mode: what one of them costs, against one alone."""

from __future__ import annotations

from benchmarks.case import BLOCK, Case
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.measure import Measurement, measure
from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.hesse_modes import REPEATED


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row for every mode."""
    modes = [mode for mode in REPEATED if settings.compiled or mode != "compiled-split"]
    names = [f"hesse/{quantity}/{mode}" for mode in modes for quantity in ("hessian", "ggn")]
    subjects = [SUBJECTS[name + suffix] for name in names for suffix in ("", f"/{BLOCK}")]
    case = Case.of(MODELS[model]())
    measured = measure(case, subjects, settings.repeats, settings.seconds)
    times = {m.subject.name: m for m in measured}
    return [
        [model, mode, *_pair(times, f"hesse/hessian/{mode}"), *_pair(times, f"hesse/ggn/{mode}")]
        for mode in modes
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
    ("model", "mode", "H v ms", f"H V / {BLOCK} H v", "G v ms", f"G V / {BLOCK} G v"),
    tuple(MODELS),
    rows,
)
