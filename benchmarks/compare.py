"""Two versions of Hesse beside each other: `python -m benchmarks compare OLD_SRC NEW_SRC`.

Each source is imported by a process of its own, with one thread. The two take turns, round by
round, in an order that alternates, so that a machine that slows down slows both. A ratio is the
median over rounds of new / old. The columns, for Hessian and Gauss-Newton matrices, on one batch
(`MODEL`) and on several (`MODEL:8`):

- product: one more product of an operator that has taken some;
- first, total, trace, solve: from a new operator, one product, 20 products, an estimate of the
  trace from as many, and as many steps of minres or cg;
- eigsh, density: three eigenvalues and a spectral density, of an operator that has taken products.

A cell names products and modes where those of the two sides differ: `auto` mode traces when
measured seconds show that it pays. A column is left out (-) where its rounds do not fit into the
seconds of a row. Both processes keep the memory that they free: whether the C library returns it to
the system, and pays for it again at the next product, is an accident of addresses that takes up to
a third of a product.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare_worker import CLOCKS, PROBLEMS

BATCHED = ["small-autoencoder:8", "deep-autoencoder:8", "gpt:8", "convnet:8", "classifier:8"]
ALL = [*PROBLEMS, *BATCHED]
QUICK = ["small-autoencoder", "small-autoencoder:8", "classifier", "classifier:8", "gpt", "convnet"]
QUICK += ["convnet:8", "lstm", "pinn", "rosenbrock", "logistic-regression"]
SECONDS, QUICK_SECONDS = 40.0, 12.0
"""For a row, about."""

COLUMNS = {
    "product": 1,
    "first": 2,
    "total": 20,
    "trace": 20,
    "solve": 20,
    "eigsh": 40,
    "density": 128,
}
"""About the products that a turn takes; the first columns are the last to be left out."""
FEWEST, MOST = 2, 50
"""Rounds of a column."""
KEYS = ("products", "mode")
MODES = ["auto", "retained-graph", "traced-split"]
SLOW = 1.1


KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}
"""For the GNU C library; the largest threshold that it takes, and more than is ever free."""


class Side:
    """The process of one source."""

    def __init__(self, source: str, clock: str) -> None:
        path = Path(source).resolve()
        environment = os.environ | KEEP_MEMORY | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.compare_worker", clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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


Sides = tuple[Side, Side]


class Failed(Exception):
    """What a worker could not do."""


@dataclass
class Cell:
    """The seconds of the two sides, their products and modes, and the ratio of new to old."""

    old: float
    new: float
    ratio: float
    rounds: int
    products: str
    modes: str

    def __str__(self) -> str:
        notes = [f"{_seconds(self.old)} -> {_seconds(self.new)} x{self.rounds}"]
        notes += [f"{self.products} products"] if "->" in self.products else []
        notes += [self.modes] if "->" in self.modes else []
        return f"{self.ratio:.2f} ({', '.join(notes)})"


Row = dict[str, Cell | str]
"""By column: a cell, or why there is none."""


def main(arguments: list[str] | None = None) -> None:
    """Print a row a model as it is measured, then means and worst."""
    options = _parser().parse_args(arguments or [])
    models = options.models or (QUICK if options.quick else ALL)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    sides = Side(options.old, options.clock), Side(options.new, options.clock)
    rows: dict[str, Row] = {}
    print(f"| model | {' | '.join(options.columns)} |\n|---|{'---|' * len(options.columns)}")
    for model in models:
        try:
            answers = [side.ask("load", model) for side in sides]
        except Failed as reason:
            print(f"| {model} | left out: {reason} |", flush=True)
            continue
        for quantity in answers[0]["quantities"]:
            name = f"{model}, {quantity}"
            rows[name] = row = compare(sides, quantity, options.mode, options.columns, seconds)
            print(f"| {name} | {' | '.join(map(str, row.values()))} |", flush=True)
    for side in sides:
        side.close()
    print(summary(rows, options.columns))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", help="a folder that holds the package hesse")
    parser.add_argument("new", help="another one")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="MODEL[:BATCHES]")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--mode", choices=MODES, default="auto", help="of all operators")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that does other work"
    )
    parser.add_argument("--quick", action="store_true", help="fewer models: about six minutes")
    parser.add_argument("--seconds", type=float, help="for a model and matrix, about")
    return parser


def compare(sides: Sides, quantity: str, mode: str, columns: list[str], budget: float) -> Row:
    """A cell for every column, within about so many seconds."""
    try:
        single = _warm_up(sides, quantity, mode, budget / 8)
    except Failed as reason:
        return dict.fromkeys(columns, f"failed: {reason}")
    row: Row = dict.fromkeys(columns, "-")
    left = budget
    for place, column in enumerate(columns):
        start = time.perf_counter()
        count = max(1, int(0.05 / single)) if column == "product" else COLUMNS[column]
        if FEWEST * 2 * count * single <= left:
            request = (column, count) if column == "product" else (column,)
            row[column] = _alternate(sides, request, left / (len(columns) - place))
        left -= time.perf_counter() - start
    return row


def _warm_up(sides: Sides, quantity: str, mode: str, budget: float) -> float:
    """Take products until the programs are traced and validated; the seconds of the last one."""
    singles = []
    for side in sides:
        side.ask("prepare", quantity, mode)
        start, seconds = time.perf_counter(), 0.0
        for _ in range(10):
            seconds = side.ask("product", 1)["seconds"]
            if time.perf_counter() - start > budget:
                break
        singles.append(seconds)
    return max(singles)


def _alternate(sides: Sides, request: tuple, budget: float) -> Cell | str:
    """Rounds in which each side takes its turn, for about so many seconds."""
    rounds: list[tuple[dict, dict]] = []
    start = time.perf_counter()
    try:
        while len(rounds) < FEWEST or (len(rounds) < MOST and time.perf_counter() - start < budget):
            order = (0, 1) if len(rounds) % 2 == 0 else (1, 0)
            answers = {i: sides[i].ask(*request) for i in order}
            rounds.append((answers[0], answers[1]))
    except Failed as reason:
        return f"failed: {reason}"
    old, new = (
        statistics.median(a["seconds"] for a in column) for column in zip(*rounds, strict=True)
    )
    ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in rounds)
    products, modes = (_changes([turn[0][k], turn[1][k]] for turn in rounds) for k in KEYS)
    return Cell(old, new, ratio, len(rounds), products, modes)


def _changes(pairs: Iterable[list[Any]]) -> str:
    """What most rounds of a side have, of one if it is the same for both."""
    old, new = (statistics.mode(column) for column in zip(*pairs, strict=True))
    return f"{old}" if old == new else f"{old} -> {new}"


def summary(rows: dict[str, Row], columns: list[str]) -> str:
    """The geometric mean and the worst ratio of every column, and all that are slower."""
    lines = ["", f"| new / old | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    ratios: dict[str, dict[str, float]] = {
        column: {
            name: cell.ratio for name, row in rows.items() if isinstance(cell := row[column], Cell)
        }
        for column in columns
    }
    for what, ends in (("hessian", "hessian"), ("ggn", "ggn"), ("all", "")):
        known = [[r for n, r in ratios[c].items() if n.endswith(ends)] for c in columns]
        means = [f"{statistics.geometric_mean(r):.3f} of {len(r)}" if r else "-" for r in known]
        lines.append(f"| {what}: geometric mean | {' | '.join(means)} |")
    worst = [max(ratios[c], key=ratios[c].__getitem__, default="") for c in columns]
    cells = [f"{ratios[c][w]:.2f} ({w})" if w else "-" for c, w in zip(columns, worst, strict=True)]
    lines.append(f"| worst | {' | '.join(cells)} |")
    slow = [
        f"- {name}, {column}: {ratio:.2f}"
        for column in columns
        for name, ratio in ratios[column].items()
        if ratio > SLOW
    ]
    return "\n".join([*lines, "", f"Above {SLOW}: {len(slow)}", *slow])


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{1e3 * seconds:.3g} ms"


if __name__ == "__main__":
    main(sys.argv[1:])
