"""Peak memory of the subjects: of preparing and taking the first products, and of a later one.

It is metered by `hesse.testing.PeakMemory` in a process of its own, since the meter slows
everything down, and since it makes some transforms of torch crash: then the next process goes on
with the next subject. Parameters, data and directions are not counted; what a
preparation leaves behind is.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import warnings

import torch

from benchmarks.case import Case
from benchmarks.models import MODELS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.subject import Subject
from hesse.testing import PeakMemory

LIMIT = 180.0
"""Seconds for all subjects of a model; those that come later are missing."""

FIRST = 2
"""Products that belong to the preparation: Hesse traces some of its programs at the second."""


def peaks(model: str, subjects: list[Subject]) -> dict[str, tuple[int, int]]:
    """Bytes (first, later) by the name of the subject; those that fail or crash are missing."""
    metered = [s for s in subjects if not s.compiled and s.library != "jax"]
    rest = [s.name for s in sorted(metered, key=lambda s: (s.quantity != "gradient", s.vectors))]
    found: dict[str, tuple[int, int]] = {}
    while rest:
        lines, status = _process(model, rest)
        found |= {name: (int(sizes[0]), int(sizes[1])) for name, *sizes in lines if len(sizes) == 2}
        if status >= 0:  # no signal: all is said, or the model cannot be built
            break
        rest = rest[len(lines) + 1 :]
    return found


def _process(model: str, names: list[str]) -> tuple[list[list[str]], int]:
    """What a process says, and its exit status; 0 where time has run out."""
    command = [sys.executable, "-m", __name__, model, str(torch.get_num_threads()), *names]
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                command, stdout=output, stderr=subprocess.DEVNULL, timeout=LIMIT, check=False
            )
            status = done.returncode
        except subprocess.TimeoutExpired:
            status = 0
        output.seek(0)
        lines = output.read().splitlines()
    return [line.split("\t") for line in lines if "\t" in line], status


def main(model: str, threads: str, *names: str) -> None:
    """Print `name<tab>bytes<tab>bytes` for every subject, `name<tab>failed` for some."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    case = Case.of(MODELS[model]())
    for name in names:
        print(name, *_peaks(case, SUBJECTS[name]), sep="\t", flush=True)


def _peaks(case: Case, subject: Subject) -> tuple[int, int] | tuple[str]:
    try:
        subject.check(case)
        with PeakMemory() as memory:
            run = subject.prepare(case)
            for _ in range(FIRST):
                run.seconds()
            gc.collect()
            first, memory.peak = memory.peak, memory.current
            run.seconds()
    except Exception:
        return ("failed",)
    return first, memory.peak


if __name__ == "__main__":
    main(*sys.argv[1:])
