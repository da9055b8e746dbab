"""Measure the subjects of a job: interleaved rounds, in each a seed and an order of their own.

Every answer begins with the model: the preparation of an operator counts. Who took long the first
time, or failed, takes part in that round only.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.measure import describe
from benchmarks.spectra.job import Job, Subject
from benchmarks.spectra.tuning import root_mean_square

LONG = 90.0
"""Seconds beyond which one round is enough."""


@dataclass
class Row:
    """What is known of a subject."""

    job: Job
    subject: Subject
    seconds: list[float] = field(default_factory=list)
    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def error(self) -> float:
        """Root mean square over the rounds."""
        return root_mean_square(self.errors)

    @property
    def count(self) -> float:
        """The median of the products."""
        return statistics.median(self.products)

    @property
    def reached(self) -> bool:
        """Whether there is an answer, accurate enough."""
        return self.failed is None and self.error <= self.job.target


def measure(job: Job, rounds: int) -> list[Row]:
    """The rows of a job."""
    rows, order = [Row(job, subject) for subject in job.subjects], random.Random(0)
    for number in range(rounds):
        due = [row for row in rows if not row.failed and (number == 0 or row.median < LONG)]
        order.shuffle(due)
        job.before(number)
        for row in due:
            _answer(row, seed=number)
    return rows


def _answer(row: Row, seed: int) -> None:
    gc.collect()
    start = time.perf_counter()
    try:
        answer = row.subject.run(seed)
    except Exception as error:
        row.failed = describe(error)
        return
    row.seconds.append(time.perf_counter() - start)
    row.products.append(answer.products)
    row.errors.append(row.job.error(answer.value))
