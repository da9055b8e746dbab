"""Memory tasks of recurrent networks: HessianFree beside AdamW on the same network and an LSTM.

HessianFree runs without and with structural damping.

A task counts as solved when fewer than 1 % of 1,000 new sequences have a wrong answer: one off by
more than 0.04, or with a wrong bit. The rates of AdamW are options: give the best of a search.
"""

from __future__ import annotations

import argparse

from benchmarks.training.memory_tasks import LENGTHS, lstm, memory_task, sizes_of
from benchmarks.training.options import parse, parser
from benchmarks.training.report import Runs, write
from benchmarks.training.rivals import adamw, hessian_free
from benchmarks.training.run import train
from benchmarks.training.task import Rival


def main(arguments: list[str] | None = None) -> None:
    """Run the tasks, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    tasks = {name: memory_task(name, options.length or LENGTHS[name]) for name in options.tasks}
    runs: Runs = {}
    for name, task in tasks.items():
        for seed in range(options.seeds):
            for rival in _rivals(name, options):
                history = train(
                    task, rival, seed, options.seconds, options.output, clock=options.clock
                )
                runs[task.name, rival.name, seed] = history
    write(options.output / "recurrent", list(tasks.values()), runs, clock=options.clock)


def _rivals(name: str, options: argparse.Namespace) -> list[Rival]:
    def ours(name: str, structural_damping: float) -> Rival:
        return hessian_free(
            lambda _: options.sequences, name, preconditioner=options.preconditioner,
            damping=options.damping, structural_damping=structural_damping,
            max_cg_iterations=options.cg, damping_rule=options.damping_rule,
        )  # fmt: skip

    lr, sizes = options.adamw_lr, sizes_of(name)
    rivals = [
        ours("HessianFree", 0.0),
        ours("HessianFree/structural", options.structural_damping),
        adamw(lr, 100, clip=1.0, name="AdamW/rnn"),
        adamw(lr, 100, clip=1.0, model=lambda seed: lstm(*sizes, seed), name="AdamW/lstm"),
    ]
    return [rival for rival in rivals if rival.name in options.rivals or not options.rivals]


def _options(arguments: list[str] | None) -> argparse.Namespace:
    shared = parser("recurrent", __doc__)
    shared.set_defaults(seeds=5, seconds=600.0, cg=20, damping_rule="levenberg-marquardt")
    add = shared.add_argument
    add("--tasks", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    add("--length", type=int, help="steps of a sequence; default 80, and 100 for five bits")
    add("--sequences", type=int, default=200, help="of a step of HessianFree")
    add("--damping", type=float, default=0.1)
    add("--structural-damping", type=float, default=0.03)
    add("--preconditioner", default="ekfac")
    add("--adamw-lr", type=float, default=1e-3)
    return parse(shared, arguments)
