"""The fresh process of `totals`: `totals_worker MODEL SUBJECT LIMIT THREADS COUNT...`.

It prints {"seconds": {count: total}, "measured": products that were taken}, as JSON, or
{"failed": reason}.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings

import torch

from benchmarks.case import Case
from benchmarks.measure import describe
from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.subject import Subject, Unavailable

LATEST = 10
"""Products whose median extrapolates the rest."""

FEWEST = 6
"""Products that are taken even beyond the limit: the first ones trace and compile."""


def main(model: str, subject: str, limit: str, threads: str, *counts: str) -> None:
    """Print the totals of a subject on a model."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    case = Case.of(MODELS[model]())
    SUBJECTS["torch/gradient/autograd"].prepare(case).seconds()
    try:
        record = totals(case, SUBJECTS[subject], float(limit), [int(count) for count in counts])
    except Unavailable as reason:
        record = {"failed": f"skipped: {reason}"}
    except Exception as error:
        record = {"failed": describe(error)}
    print(json.dumps(record))


def totals(case: Case, subject: Subject, limit: float, counts: list[int]) -> dict:
    """The seconds of the preparation and so many products; extrapolated beyond the limit."""
    subject.check(case)  # of Hesse's subjects it costs nothing
    start = time.perf_counter()
    run = subject.prepare(case)
    spent = getattr(run, "first_call", time.perf_counter() - start)
    single: list[float] = []
    while len(single) < max(counts) and (spent + sum(single) < limit or len(single) < FEWEST):
        single.append(run.seconds())
    rate = statistics.median(single[1:][-LATEST:] or single)
    seconds = {
        count: spent + sum(single[:count]) + max(count - len(single), 0) * rate for count in counts
    }
    return {"seconds": seconds, "measured": len(single)}


if __name__ == "__main__":
    main(*sys.argv[1:])
