"""Curvature over training: the edge of stability, the price of a measurement, the overhead.

Digits of scikit-learn (1,437 examples), squared loss, MLP 64-32-32-10 with tanh in float64, full
batches. Gradient descent sharpens until lambda_max = 2 / eta, with momentum until
2 (1 + beta) / eta; the table has the mean over the second half of lambda_max over that limit.
The overhead is the time of a run with a tracker over that of the same run without one, by the time
of the processor. Both advance in turn, 50 steps each, so that both see the same machine; the time
of a run has its set-up in it, and that of the risk. The budget is 5 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import hesse
from hesse.apps import CurvatureTracker

from .influence import Digits

RUNS = ((0.1, 0.0), (0.2, 0.0), (0.4, 0.0), (0.4, 0.5), (0.4, 0.8))
"""(eta, beta)."""
EVERY = 50  # steps between measurements that are due, where the overhead is measured


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps tracker", description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--only-overhead", action="store_true", help="leave the edge out")
    parser.add_argument("--repeats", type=int, default=3, help="of the overhead; 0 leaves it out")
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    digits = Digits()
    problem = Problem(digits.X, one_hot(digits.y, 10).double())
    if not options.only_overhead:
        edge_of_stability(problem, options.steps)
    if options.repeats:
        overhead(problem, options.steps, options.repeats)


class Problem:
    """The data and the network."""

    def __init__(self, X: Tensor, Y: Tensor) -> None:
        self.X, self.Y = X, Y
        # 5 times the mean over all entries: half the sum over the outputs of an example.
        self.loss = Half()

    def network(self) -> nn.Sequential:
        torch.manual_seed(0)
        a, b, c = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        return nn.Sequential(a, nn.Tanh(), b, nn.Tanh(), c)


class Run:
    """A training by full batches, with a tracker or without one, and the seconds that it took."""

    def __init__(
        self, problem: Problem, rate: float, momentum: float = 0.0, **tracked: Any
    ) -> None:
        self.problem, self.seconds, self.tracker = problem, 0.0, None
        self._began: float | None = None
        with self._running():
            self.model = problem.network()
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=momentum)
            if tracked:
                risk = hesse.Risk(self.model, problem.loss, (problem.X, problem.Y))
                self.tracker = CurvatureTracker(risk, clock=self._clock, **tracked)

    def advance(self, steps: int) -> None:
        """Take so many steps."""
        X, Y = self.problem.X, self.problem.Y
        with self._running():
            for _ in range(steps):
                if self.tracker is not None:
                    self.tracker.step(None, self.optimizer)
                self.optimizer.zero_grad()
                self.problem.loss(self.model(X), Y).backward()
                self.optimizer.step()

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._began = time.process_time()
        yield
        self.seconds, self._began = self._clock(), None

    def _clock(self) -> float:
        """Seconds of the processor while this training ran."""
        return self.seconds + (0.0 if self._began is None else time.process_time() - self._began)


class Half(nn.Module):
    """|f - y|^2 / 2, the mean over examples."""

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return 0.5 * nn.functional.mse_loss(f, y) * f.shape[1]


def edge_of_stability(problem: Problem, steps: int) -> None:
    print("  eta  beta   limit  lambda / limit: first  mean of 2nd half (range)   products", end="")
    print("  seconds of measurements and of all")
    for rate, momentum in RUNS:
        run = Run(problem, rate, momentum, every=100, budget=None)
        run.advance(steps + 1)
        assert run.tracker is not None
        rows = list(run.tracker.history)
        late = [row.stability for row in rows[len(rows) // 2 :] if row.stability is not None]
        products = sum(row.products for row in rows) / len(rows)
        spent = sum(row.seconds for row in rows)
        limit = 2 * (1 + momentum) / rate
        print(f"{rate:5g}{momentum:6g}{limit:8.1f}{rows[0].stability:22.2f}", end="")
        print(f"{sum(late) / len(late):11.3f} ({min(late):.2f}-{max(late):.2f})", end="")
        print(f"{products:16.1f}{spent:12.1f}{run.seconds:6.1f}")


def overhead(problem: Problem, steps: int, repeats: int) -> None:
    """With and without a tracker that may take 5 %."""
    ratios, shares, counts = [], [], []
    for _ in range(repeats):
        within, without = Run(problem, 0.2, every=EVERY, budget=0.05), Run(problem, 0.2)
        for turn in range(steps // EVERY):
            for run in (within, without) if turn % 2 else (without, within):
                run.advance(EVERY)
        assert within.tracker is not None
        ratios.append(within.seconds / without.seconds)
        spent = sum(row.seconds for row in within.tracker.history)
        shares.append(spent / (within.seconds - spent))
        counts.append(len(within.tracker.history))
    print(f"budget 5 %: {median(ratios) - 1:.1%} more time (of {repeats} runs from", end=" ")
    print(f"{min(ratios) - 1:.1%} to {max(ratios) - 1:.1%}), {median(shares):.1%} by", end=" ")
    print(f"the clock of the tracker; {counts} measurements of {steps // EVERY} that were due")
