"""A study: one question, asked of several models, whose answers are the rows of a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.case import Case
from benchmarks.measure import Measurement, measure
from benchmarks.subjects.subject import Run, Subject
from hesse.testing import PeakMemory

Cell = str | float | None
"""A text, a number, or nothing to tell."""

THREE = ("deep-autoencoder", "gpt", "convnet")
"""Matrix products of large layers, attention, convolutions."""


@dataclass(frozen=True)
class Settings:
    """How often and how long products are timed, and whether compilers take part."""

    repeats: int
    seconds: float
    compiled: bool

    def measure(
        self, case: Case, runs: dict[str, Run], quantities: dict[str, str] | None = None
    ) -> dict[str, Measurement]:
        """Interleaved times and errors of runs, by name; products with the Hessian by default."""
        known = quantities or {}
        subjects = [_ready(known.get(n, "hessian"), n, run) for n, run in runs.items()]
        found = measure(case, subjects, self.repeats, self.seconds)
        return {m.subject.method: m for m in found}


@dataclass(frozen=True)
class Study:
    """A title, what the columns mean, the models by default, and the rows of one model."""

    title: str
    note: str
    columns: tuple[str, ...]
    models: tuple[str, ...]
    rows: Callable[[str, Settings], list[list[Cell]]]


def peak(prepare: Callable[[], Run], products: int = 3) -> int:
    """The most bytes that a preparation and its first products took."""
    with PeakMemory() as memory:
        run = prepare()
        for _ in range(products):
            run.seconds()
    return memory.peak


def ratio(ours: Measurement, other: Measurement) -> float | None:
    """Of the median times."""
    return ours.median / other.median if ours.seconds and other.seconds else None


def _ready(quantity: str, name: str, run: Run) -> Subject:
    return Subject("hesse", quantity, name, lambda _: run)
