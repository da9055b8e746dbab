"""Two versions of Hesse beside each other: `python -m benchmarks.compare OLD_SRC NEW_SRC`.

Each source is imported by a process of its own, with one thread; the two take turns, round by
round, in an order that alternates, so that a machine that slows down slows both. A ratio is the
median over rounds of new / old. Measured are a prepared product, an operator with 20 products from
scratch, and three eigenvalues.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import MODELS

QUICK = ["small-autoencoder", "small-autoencoder:8", "logistic-regression"]
ALL = [*MODELS, "small-autoencoder:8", "deep-autoencoder:8"]
COUNT = 20
"""Products of a total."""
EIGSH = 40
"""About the products of an eigsh, which is left out where they would take too long."""
COLUMNS = ["product", f"total of {COUNT}", "eigsh"]


class Side:
    """The process of one source."""

    def __init__(self, source: str) -> None:
        path = Path(source).resolve()
        environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        found = Path(self._answer()["source"])
        if path not in found.parents:
            raise SystemExit(f"{source} has no package hesse: {found} was imported")

    def ask(self, name: str, *arguments: object) -> dict:
        """The answer to a request; raises Failed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Failed(Exception):
    """What a worker could not do."""


@dataclass
class Cell:
    """Seconds of the two sides, and the ratio of new to old; no ratio if it was left out."""

    old: float
    new: float
    ratio: float | None

    def __str__(self) -> str:
        if self.ratio is None:
            return "-"
        return f"{self.ratio:.2f} ({_seconds(self.old)} -> {_seconds(self.new)})"


SKIPPED = Cell(0.0, 0.0, None)


def main(arguments: list[str] | None = None) -> None:
    """Print a row a model as it is measured, then means and worst."""
    parser = argparse.ArgumentParser("benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", help="a folder that holds the package hesse")
    parser.add_argument("new", help="another one")
    parser.add_argument("--models", nargs="+", default=ALL, metavar="MODEL", help="MODEL[:BATCHES]")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--seconds", type=float, default=12.0, help="for a model and kind, about")
    options = parser.parse_args(arguments)
    sides = Side(options.old), Side(options.new)
    rows: dict[str, list[Cell]] = {}
    print(f"| model | {' | '.join(COLUMNS)} | modes |\n|---|{'---|' * (len(COLUMNS) + 1)}")
    for model in QUICK if options.quick else options.models:
        answers = [side.ask("load", model) for side in sides]
        for kind in answers[0]["kinds"]:
            name = f"{model}, {kind}"
            try:
                rows[name], modes = compare(sides, kind, options.seconds)
                print(f"| {name} | {' | '.join(map(str, rows[name]))} | {modes} |", flush=True)
            except Failed as reason:
                print(f"| {name} | failed: {reason} |", flush=True)
    for side in sides:
        side.close()
    print(summary(rows))


def compare(sides: tuple[Side, Side], kind: str, budget: float) -> tuple[list[Cell], str]:
    """A cell for every column, within about so many seconds; and the modes of both."""
    for side in sides:
        side.ask("prepare", kind)
    single = max(_warm(side, budget / 8) for side in sides)
    count = max(1, int(0.05 / single))
    requests: list[tuple[tuple, int]] = [
        (("products", count), count),
        (("total", COUNT), COUNT),
        (("eigsh",), EIGSH),
    ]
    cells = [
        # Two rounds of two sides at least, which may take a little more than their share.
        _alternate(sides, request, budget / 3) if 4 * products * single < budget else SKIPPED
        for request, products in requests
    ]
    modes = [side.ask("products", 1)["mode"] for side in sides]
    return cells, modes[0] if modes[0] == modes[1] else " -> ".join(modes)


def _warm(side: Side, budget: float) -> float:
    """Take products until the programs are traced and validated; the seconds of the last one."""
    start, seconds = time.perf_counter(), 0.0
    for _ in range(10):
        seconds = side.ask("products", 1)["seconds"]
        if time.perf_counter() - start > budget:
            break
    return seconds


def _alternate(sides: tuple[Side, Side], request: tuple, budget: float) -> Cell:
    """Rounds in which each side takes its turn: two at least, fifty at most."""
    rounds: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(rounds) < 2 or (len(rounds) < 50 and time.perf_counter() - start < budget):
        order = (0, 1) if len(rounds) % 2 == 0 else (1, 0)
        seconds = {i: sides[i].ask(*request)["seconds"] for i in order}
        rounds.append((seconds[0], seconds[1]))
    old, new = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Cell(old, new, statistics.median(b / a for a, b in rounds))


def summary(rows: dict[str, list[Cell]]) -> str:
    """The geometric mean and the worst ratio of every column, for each kind."""
    lines = ["", f"| new / old | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for kind in ("hessian", "ggn"):
        chosen = {name: cells for name, cells in rows.items() if name.endswith(kind)}
        means, worst = [], []
        for column in range(len(COLUMNS)):
            ratios = {name: cells[column].ratio for name, cells in chosen.items()}
            known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
            means.append(f"{statistics.geometric_mean(known.values()):.3f}" if known else "-")
            name = max(known, key=known.__getitem__, default="")
            worst.append(f"{known[name]:.2f} ({name.partition(',')[0]})" if known else "-")
        lines.append(f"| {kind}: geometric mean | {' | '.join(means)} |")
        lines.append(f"| {kind}: worst | {' | '.join(worst)} |")
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1e3 * seconds:.3g} ms"


if __name__ == "__main__":
    main()
