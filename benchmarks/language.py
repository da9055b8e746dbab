"""A GPT of characters: HessianFree beside AdamW, Muon and SOAP, for equal seconds.

The error is the cross-entropy of the last tenth of the text, which is not trained on. The rate of a
rival is the best of three, each of which is tried with one seed for 15 % of the seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.training.contest import add_options, contest, usual
from benchmarks.training.options import parse, parser
from benchmarks.training.text import language, read

THRESHOLDS = (3.0, 2.5, 2.0, 1.75, 1.5)


def main(arguments: list[str] | None = None) -> None:
    """Run all, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    task = language(read(options.data), options.width, options.layers)
    contest(task, usual(options), options, THRESHOLDS)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    shared = parser("language", __doc__)
    shared.set_defaults(seeds=1, seconds=1800.0, cg=10, damping_rule="scan")
    add = shared.add_argument
    add("--data", type=Path, help="a text; default the manual of Python that comes with it")
    add("--width", type=int, default=128)
    add("--layers", type=int, default=5)
    add_options(shared, first=64, last=512, every=20)
    shared.set_defaults(rivals_batch=32)
    return parse(shared, arguments)
