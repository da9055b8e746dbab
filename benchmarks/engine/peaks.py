"""Peak memory of repeated products and of one-shot ones, in gradients."""

from __future__ import annotations

from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.memory import peaks
from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.summary import REFERENCE

COLUMNS = {
    "H retained-graph": "hesse/hessian/retained-graph",
    "H traced-split": "hesse/hessian/traced-split",
    "G retained-graph": "hesse/ggn/retained-graph",
    "G traced-split": "hesse/ggn/traced-split",
    "reverse-over-reverse": "hesse/hessian/reverse-over-reverse",
    "forward-over-reverse": "hesse/hessian/forward-over-reverse",
    "reverse-over-forward": "hesse/hessian/reverse-over-forward",
}


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row."""
    MODELS[model]()  # whose library may be missing: then this says so, not the process that meters
    found = peaks(model, [SUBJECTS[name] for name in (REFERENCE, *COLUMNS.values())])
    gradient = found[REFERENCE][1]
    over = {name: later / gradient for name, (_, later) in found.items()}
    first = found.get(COLUMNS["H traced-split"])
    tracing = first[0] / gradient if first else None
    return [[model, gradient / 1e6, tracing, *(over.get(name) for name in COLUMNS.values())]]


STUDY = Study(
    "Memory",
    "Peaks over the gradient's: of the first products by `traced-split`, tracing included; "
    "of later ones, with what is kept for them; of one-shot products.",
    ("model", "gradient MB", "H tracing", *COLUMNS),
    tuple(MODELS),
    rows,
)
