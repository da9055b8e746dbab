# SPDX-License-Identifier: Apache-2.0
"""The command: fit each equation until its seconds are over, report errors against time.

Seconds are those of the processor, of all threads. A fit goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hesse
from benchmarks.machine import describe_machine, one_line
from benchmarks.pinn.collocation import Collocation
from benchmarks.pinn.equations import EQUATIONS
from benchmarks.pinn.network import Network

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_HEADER = """\
| equation | parameters | residuals | dtype | steps | Jacobians | seconds | relative L2 error \
| lowest | cost |
|---|--:|--:|---|--:|--:|--:|--:|--:|--:|"""
# A window is left after so many steps, or when the cost is this part of that at the start.
_STEPS, _LOW = 15, 1e-4


class Watch:
    """A callback that notes the error after every step, and stops when the time is over."""

    def __init__(self, path: Path, problem: Collocation, seconds: float) -> None:
        self._path, self._problem = path, problem
        self.rows = [json.loads(line) for line in _lines(path)]
        self._before = self.rows[-1]["seconds"] if self.rows else 0.0
        self._limit, self._began = seconds, time.process_time()
        self.enter(1, 0.0)

    @property
    def is_over(self) -> bool:
        """Whether the time is."""
        return time.process_time() - self._began > self._limit - self._before

    def enter(self, window: int, enough: float) -> None:
        """A window, which is left at a cost below `enough`."""
        self._window, self._enough = window, enough
        earlier = [row for row in self.rows if row["window"] < window]
        self._jacobians = earlier[-1]["jacobians"] if earlier else 0

    def __call__(self, state: Any) -> bool:
        """Note a step that is new."""
        last = self.rows[-1] if self.rows else {"window": 1, "step": 0}
        if (self._window, state.number) > (last["window"], last["step"]) and state.number:
            seconds = self._before + time.process_time() - self._began
            error = self._problem.error(state.x)
            row = {"window": self._window, "step": state.number, "seconds": seconds,
                   "jacobians": self._jacobians + state.products // self._products_each,
                   "cost": state.value, "error": error}  # fmt: skip
            self.rows.append(row)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"\r{self._problem.equation.name}: step {len(self.rows)}, {seconds:.0f} s, "
                f"error {error:.2e}   ", end="", file=sys.stderr, flush=True,
            )  # fmt: skip
        return self.is_over or state.value < self._enough

    @property
    def _products_each(self) -> int:
        return min(self._problem.size, self._problem.network.size)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def fit(name: str, options: argparse.Namespace) -> str:
    """A row of the table."""
    dtype, equation = _DTYPES[options.dtype], EQUATIONS[name]()
    network = Network(
        options.width, options.depth, equation.domain,
        is_periodic=equation.is_periodic and not options.plain, activation=options.activation,
    )  # fmt: skip
    stem = f"pinn-{name}-{network.size}-{options.points}-{options.dtype}-{options.seed}"
    stem += f"-{options.activation}" + "-plain" * options.plain
    stem += f"-{options.windows}" * (options.windows > 1)
    whole = Collocation(equation, network, options.points, dtype)
    watch = Watch(options.output / f"{stem}.jsonl", whole, options.seconds)
    theta, weights, enough = network.start(options.seed, dtype), None, 0.0
    for window in range(1, options.windows + 1):
        if watch.is_over:
            break
        is_last, part = window == options.windows, window / options.windows
        problem = whole
        if not is_last:
            problem = Collocation(equation, network, options.points, dtype, part)
        if options.windows > 1:
            weights = weights or problem.balance(theta)
            problem.weigh(weights)
            enough = enough or _LOW * 0.5 * float(problem.residuals(theta).square().sum())
        watch.enter(window, 0.0 if is_last else enough)
        theta = hesse.least_squares(
            (problem.residuals, problem.jacobian), theta, "svd-long", x_scale=1.0,
            ftol=0.0, xtol=0.0, gtol=0.0, max_iterations=100_000 if is_last else _STEPS,
            callback=watch, checkpoint=options.output / f"{stem}{f'-{window}' * (not is_last)}.run",
        ).x  # fmt: skip
    print(file=sys.stderr)
    last, lowest = watch.rows[-1], min(row["error"] for row in watch.rows)
    return (
        f"| {name} | {network.size:,} | {problem.size:,} | {options.dtype} | {len(watch.rows)} "
        f"| {last['jacobians']} | {last['seconds']:.0f} | {last['error']:.1e} | {lowest:.1e} "
        f"| {last['cost']:.1e} |"
    )


def draw(options: argparse.Namespace) -> None:
    """Errors against seconds of all runs in the folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    for path in sorted(options.output.glob("pinn-*.jsonl")):
        rows = [json.loads(line) for line in _lines(path)]
        label = path.stem.removeprefix("pinn-")
        axis.plot([r["seconds"] for r in rows], [r["error"] for r in rows], label=label)
    axis.set(yscale="log", xlabel="seconds of the processor", ylabel="relative L2 error")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(options.output / "pinn.png", dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Fit, resume, and report."""
    options = _parser().parse_args(arguments or [])
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [fit(name, options) for name in options.equations]
    draw(options)
    text = "\n".join([one_line(describe_machine()), "", _HEADER, *rows])
    (options.output / "pinn.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks pinn", description=__doc__)
    parser.add_argument("--equations", nargs="+", choices=EQUATIONS, default=["burgers"])
    parser.add_argument("--width", type=int, default=20)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--points", type=int, default=4096, help="inside")
    parser.add_argument("--activation", choices=["tanh", "sine"], default="tanh")
    parser.add_argument(
        "--plain", action="store_true",
        help="inputs t and x; otherwise t, cos and sin of x where the equation is periodic",
    )  # fmt: skip
    parser.add_argument(
        "--windows", type=int, default=1,
        help="fit the first N-th of the time, then twice that, and so on, with kinds of residuals "
        "balanced at the start",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=_DTYPES, default="float64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600.0, help="of one fit")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser
