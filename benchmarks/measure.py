"""Measure the subjects of a case: first call and error, then times, interleaved.

In every round each subject takes its turn, in an order drawn anew, so that a machine that slows
down slows all of them down. The first round tells what they cost: a subject that is too slow for
all rounds takes part in fewer, spread evenly over the whole.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.case import Case
from benchmarks.oracle import Oracle
from benchmarks.subjects.subject import Run, Subject, Unavailable
from hesse import HesseError

FEWEST = 3
"""Rounds that every subject takes part in, however slow it is."""

TOLERANCE = 1e-4
"""A float32 product with a larger relative error counts as wrong."""


@dataclass
class Measurement:
    """What is known of one subject on one model."""

    model: str
    subject: Subject
    first_call: float | None = None
    seconds: list[float] = field(default_factory=list)
    error: float | None = None
    peak_bytes: int | None = None
    repeated_bytes: int | None = None
    skipped: str | None = None
    failed: str | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile, in seconds."""
        if len(self.seconds) < 2:
            return self.median, self.median
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third

    @property
    def wrong(self) -> bool:
        """Whether the result is not the product."""
        return self.error is not None and not self.error < TOLERANCE

    @property
    def valid(self) -> bool:
        """Whether there is a time, of a right product."""
        return bool(self.seconds) and not self.wrong


def measure(
    case: Case, subjects: Iterable[Subject], repeats: int, budget: float
) -> list[Measurement]:
    """The measurements of all subjects on one model; `budget` is in seconds, for the times."""
    oracle, order = Oracle.of(case), random.Random(0)
    results = {subject.name: Measurement(case.problem.name, subject) for subject in subjects}
    first = {name: _first_call(case, result, oracle) for name, result in results.items()}
    runs = {name: run for name, run in first.items() if run is not None}
    gc.collect()
    gc.freeze()  # what lives on need not be looked at in every round
    _round([results[name] for name in runs], runs, order)
    turns = _turns({n: m.seconds[0] for n, m in results.items() if m.seconds}, repeats, budget)
    for number in range(1, repeats):
        due = [results[n] for n, count in turns.items() if _is_due(number, count, repeats)]
        _round(due, runs, order)
    gc.unfreeze()
    return list(results.values())


def _round(due: list[Measurement], runs: dict[str, Run], order: random.Random) -> None:
    """One product of each, in random order; who fails, takes part no more."""
    order.shuffle(due)
    for measurement in due:
        if measurement.failed:
            continue
        try:
            measurement.seconds.append(runs[measurement.subject.name].seconds())
        except Exception as error:
            measurement.failed, measurement.seconds = describe(error), []
    gc.collect()


def _first_call(case: Case, measurement: Measurement, oracle: Oracle) -> Run | None:
    """Prepare and take the first product; None if the subject cannot."""
    subject = measurement.subject
    try:
        subject.check(case)
        start = time.perf_counter()
        run = subject.prepare(case)
        run.seconds()
        seconds = time.perf_counter() - start
        measurement.error = oracle.error(subject.quantity, run.result())
    except Unavailable as reason:
        measurement.skipped = str(reason)
        return None
    except Exception as error:
        measurement.failed = describe(error)
        return None
    measurement.first_call = getattr(run, "first_call", seconds)
    measurement.repeated_bytes = getattr(run, "repeated_bytes", None)
    return run


def _turns(costs: dict[str, float], repeats: int, budget: float) -> dict[str, int]:
    """In how many rounds each subject takes part; what fast ones leave over goes to the others."""
    turns: dict[str, int] = {}
    for place, (name, cost) in enumerate(sorted(costs.items(), key=lambda item: item[1])):
        share = budget / (len(costs) - place)
        turns[name] = max(min(FEWEST, repeats), min(repeats, int(share / cost)))
        budget = max(budget - turns[name] * cost, 0.0)
    return turns


def _is_due(number: int, count: int, repeats: int) -> bool:
    """Whether one of `count` turns falls into this round: one into round 0, the others after."""
    rest, rounds = count - 1, repeats - 1
    return number * rest // rounds > (number - 1) * rest // rounds


def describe(error: Exception) -> str:
    """The kind of an error and its first line; what Hesse got, where the error is its own."""
    message = error.got if isinstance(error, HesseError) else str(error)
    first = next(iter(message.strip().splitlines()), "no message")
    return f"{type(error).__name__}: {first}"
