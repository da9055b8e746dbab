"""Rivals on a task for equal seconds, each at the best of its rates."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from benchmarks.training.report import Runs, write
from benchmarks.training.rivals import NEEDS, adamw, hessian_free, kfac, muon, soap
from benchmarks.training.run import train
from benchmarks.training.task import Task, growing
from benchmarks.training.tuning import Tunable, Untuned

Contestants = dict[str, Tunable | Untuned]
RATES = (1e-3, 3e-3, 1e-2)
"""Those that are tried."""


def add_options(parser: argparse.ArgumentParser, first: int, last: int, every: int) -> None:
    """Options of `usual`, with the sizes of HessianFree's batches."""
    add = parser.add_argument
    add("--batch", type=int, default=first, help="examples of the first steps of HessianFree")
    add("--last-batch", type=int, default=last, help="examples that its batches grow to")
    add("--every", type=int, default=every, help="steps after which its batches double")
    add("--refresh-every", type=int, default=1, help="steps of HessianFree's preconditioner")
    add("--mode", default="auto", help="how HessianFree takes its products")
    add("--rivals-batch", type=int, help="examples of a step of the others")


def usual(options: argparse.Namespace) -> Contestants:
    """HessianFree, its cheap steps, and the first-order optimisers that are used most."""
    sizes = growing(options.batch, options.last_batch, options.every)
    batch = options.rivals_batch
    own = {"refresh_every": options.refresh_every, "mode": options.mode}
    ours = hessian_free(
        sizes, damping_rule=options.damping_rule, max_cg_iterations=options.cg, **own
    )
    return {
        "HessianFree": Untuned(ours),
        "K-FAC": Untuned(kfac(sizes, **own)),
        "AdamW": Tunable(lambda rate: adamw(rate, batch), RATES),
        "Muon": Tunable(lambda rate: muon(rate, batch), RATES),
        "SOAP": Tunable(lambda rate: soap(rate, batch), RATES),
    }


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
