"""A GPT of characters: HessianFree beside AdamW, Muon and SOAP, for equal seconds.

The error is the cross-entropy of the last tenth of the text, which is not trained on. The rate of a
rival is the best of three, each of which is tried with one seed for 15 % of the seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.training import rivals
from benchmarks.training.contest import contest
from benchmarks.training.options import parse, parser
from benchmarks.training.task import growing
from benchmarks.training.text import language, read
from benchmarks.training.tuning import Tunable, Untuned

THRESHOLDS = (3.0, 2.5, 2.0, 1.75, 1.5)
_ADAM = (1e-3, 3e-3, 1e-2)


def main(arguments: list[str] | None = None) -> None:
    """Run all, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    task = language(read(options.data), options.width, options.layers)
    contest(task, _rivals(options), options, THRESHOLDS)


def _rivals(options: argparse.Namespace) -> dict[str, Tunable | Untuned]:
    sizes, batch = growing(options.batch, options.last_batch, options.every), options.rivals_batch
    settings = {
        "damping_rule": options.damping_rule,
        "max_cg_iterations": options.cg,
        "refresh_every": options.refresh_every,
    }
    return {
        "HessianFree": Untuned(rivals.hessian_free(sizes, **settings)),
        "K-FAC": Untuned(rivals.kfac(sizes, refresh_every=options.refresh_every)),
        "AdamW": Tunable(lambda rate: rivals.adamw(rate, batch), _ADAM),
        "Muon": Tunable(lambda rate: rivals.muon(rate, batch), _ADAM),
        "SOAP": Tunable(lambda rate: rivals.soap(rate, batch), _ADAM),
    }


def _options(arguments: list[str] | None) -> argparse.Namespace:
    shared = parser("language", __doc__)
    shared.set_defaults(seeds=1, seconds=1800.0, cg=10, damping_rule="scan")
    add = shared.add_argument
    add("--data", type=Path, help="a text; default the manual of Python that comes with it")
    add("--width", type=int, default=128)
    add("--layers", type=int, default=5)
    add("--batch", type=int, default=64, help="windows of the first steps of HessianFree")
    add("--last-batch", type=int, default=512, help="windows that its batches grow to")
    add("--every", type=int, default=20, help="steps after which its batches double")
    add("--refresh-every", type=int, default=1, help="steps of HessianFree's preconditioner")
    add("--rivals-batch", type=int, default=32)
    return parse(shared, arguments)
