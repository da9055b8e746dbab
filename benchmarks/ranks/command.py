"""The command: `python -m benchmarks ranks [efficiency] [memory] [peer] [model]`."""

from __future__ import annotations

import argparse

from benchmarks.machine import describe_machine, one_line
from benchmarks.ranks import efficiency, memory, model, peer

PARTS = ("efficiency", "memory", "peer", "model")


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a table for each part."""
    options = _parser().parse_args(arguments or [])
    print(one_line(describe_machine()))
    for part in options.parts or PARTS:
        if part == "efficiency":
            rows = efficiency.table(options.batches, options.repeats)
        elif part == "memory":
            rows = memory.table(options.ranks, options.n)
        elif part == "peer":
            rows = peer.table()
        else:
            rows = model.tables(options.n)
        print("", *rows, sep="\n", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks ranks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--batches", type=int, nargs="*", default=[1000, 250])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--n", type=int, default=10_000_000)
    return parser


if __name__ == "__main__":
    main()
