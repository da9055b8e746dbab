"""Curvature over training: the edge of stability, the price of a measurement, the overhead.

Digits of scikit-learn (1,437 examples), squared loss, MLP 64-32-32-10 with tanh in float64, full
batches. Gradient descent sharpens until lambda_max = 2 / eta, with momentum until
2 (1 + beta) / eta; the table has the mean over the second half of lambda_max over that limit.
The overhead is the time of a run with a tracker over that of the same run without one, by the time
of the processor, alternating; the budget is 5 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import hesse
from hesse.apps import CurvatureTracker

from .influence import Digits

RUNS = ((0.1, 0.0), (0.2, 0.0), (0.4, 0.0), (0.4, 0.5), (0.4, 0.8))
"""(eta, beta)."""


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps tracker", description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3, help="of the overhead; 0 leaves it out")
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    digits = Digits()
    problem = Problem(digits.X, one_hot(digits.y, 10).double())
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

    def train(
        self, rate: float, momentum: float, steps: int, every: int, budget: float | None
    ) -> tuple[CurvatureTracker | None, float]:
        """The tracker, if there is one, and the seconds of the processor."""
        model = self.network()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
        start, tracker = time.process_time(), None
        if every:
            risk = hesse.Risk(model, self.loss, (self.X, self.Y))
            tracker = CurvatureTracker(risk, every=every, budget=budget, clock=time.process_time)
        for _ in range(steps + 1):
            if tracker is not None:
                tracker.step(None, optimizer)
            optimizer.zero_grad()
            self.loss(model(self.X), self.Y).backward()
            optimizer.step()
        return tracker, time.process_time() - start


class Half(nn.Module):
    """|f - y|^2 / 2, the mean over examples."""

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return 0.5 * nn.functional.mse_loss(f, y) * f.shape[1]


def edge_of_stability(problem: Problem, steps: int) -> None:
    print("  eta  beta   limit  lambda / limit: first  mean of 2nd half (range)   products", end="")
    print("  seconds of measurements and of all")
    for rate, momentum in RUNS:
        tracker, seconds = problem.train(rate, momentum, steps, 100, None)
        assert tracker is not None
        rows = list(tracker.history)
        late = [row.stability for row in rows[len(rows) // 2 :] if row.stability is not None]
        products = sum(row.products for row in rows) / len(rows)
        spent = sum(row.seconds for row in rows)
        limit = 2 * (1 + momentum) / rate
        print(f"{rate:5g}{momentum:6g}{limit:8.1f}{rows[0].stability:22.2f}", end="")
        print(f"{sum(late) / len(late):11.3f} ({min(late):.2f}-{max(late):.2f})", end="")
        print(f"{products:16.1f}{spent:12.1f}{seconds:6.1f}")


def overhead(problem: Problem, steps: int, repeats: int) -> None:
    """With and without a tracker that may take 5 %."""
    ratios, counts = [], []
    for _ in range(repeats):
        _, without = problem.train(0.2, 0.0, steps, 0, None)
        tracker, within = problem.train(0.2, 0.0, steps, 50, 0.05)
        assert tracker is not None
        ratios.append(within / without)
        counts.append(len(tracker.history))
    print(f"budget 5 %: {median(ratios) - 1:.1%} more time (of {repeats} runs from", end=" ")
    print(f"{min(ratios) - 1:.1%} to {max(ratios) - 1:.1%}), {counts} measurements of", end=" ")
    print(f"{steps // 50 + 1} that were due")
