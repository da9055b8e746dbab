"""Rivals on a task for equal seconds, each at the best of its rates."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from benchmarks.training.report import Runs, write
from benchmarks.training.rivals import NEEDS
from benchmarks.training.run import train
from benchmarks.training.task import Task
from benchmarks.training.tuning import Tunable, Untuned


def contest(
    task: Task,
    rivals: Mapping[str, Tunable | Untuned],
    options: argparse.Namespace,
    thresholds: Sequence[float],
) -> None:
    """Run those that the options name, or all, continuing where an earlier call was cut off."""
    seconds, folder, clock = options.seconds, options.output, options.clock
    runs: Runs = {}
    for name, rival in rivals.items():
        if options.rivals and name not in options.rivals:
            continue
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            print(f"{name} is left out: it needs the package {NEEDS[name]}.")
            continue
        best = rival.best(task, seconds, folder, clock)
        for seed in range(options.seeds):
            history = train(task, best, seed, seconds, folder, clock=clock)
            runs[task.name, best.name, seed] = history
    write(folder / task.name, [task], runs, thresholds, clock)
