# SPDX-License-Identifier: Apache-2.0
"""Train the autoencoder from one random start by three optimisers, against seconds and gradients.

The clock stops while an error is evaluated. Work is counted in gradient-equivalents over the whole
data set: a gradient 1, a value 1/3, a Gauss-Newton product 4/3, an epoch of mini-batches 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hesse.optimize import Growing, HessianFree
from hesse.optimize.point import Counts
from hesse.report.digits import autoencoder, reconstruction_error, reconstruction_loss
from hesse.risk.risk import Risk

Tick = Callable[[float], None]
"""Called with the fraction done, for a progress bar."""

# The best of learning rates 3e-3, 5e-3, 1e-2 and batches of 100, 200 at 2,000 epochs:
# `python -m benchmarks tune-adamw` reproduces the search.
ADAMW = {"lr": 5e-3, "batch_size": 100}


@dataclass
class Curve:
    """The training error along a run, and the model at its end."""

    name: str
    model: nn.Sequential
    pixels: Tensor
    seconds: list[float] = field(default_factory=list)
    gradients: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    _elapsed: float = 0.0
    _since: float = 0.0

    def start(self) -> Curve:
        """Record the random start and start the clock.

        torch imports its compiler when the first optimiser is made, which takes a second: that is
        done before, so that the first of several runs does not pay for all.
        """
        torch.optim.SGD(self.model.parameters())
        self.record(0.0)
        return self

    def record(self, gradients: float) -> None:
        """Stop the clock, record the error after so many gradient-equivalents, and go on."""
        if self._since:
            self._elapsed += time.perf_counter() - self._since
        self.seconds.append(self._elapsed)
        self.gradients.append(gradients)
        self.errors.append(reconstruction_error(self.model, self.pixels))
        self._since = time.perf_counter()

    def seconds_to(self, error: float) -> float | None:
        """When the error was first reached, or None."""
        return next((s for s, e in zip(self.seconds, self.errors, strict=True) if e <= error), None)

    def error_at(self, seconds: float) -> float:
        """The last error recorded by then."""
        return [e for s, e in zip(self.seconds, self.errors, strict=True) if s <= seconds][-1]


def train_hessian_free(pixels: Tensor, seed: int, steps: int, tick: Tick) -> Curve:
    """HessianFree: from a sixth of the data on, else at its defaults."""
    model = autoencoder(seed)
    curve = Curve("HessianFree", model, pixels).start()
    risk = Risk(model, reconstruction_loss, (pixels, pixels))
    optimizer = HessianFree(Growing(risk, share=1 / 6), seed=seed)
    work = 0.0
    for step in range(1, steps + 1):
        share, before = optimizer.param_groups[0]["share"], replace(optimizer.counts)
        optimizer.step()
        work += share * _work(before, optimizer.counts)
        if share < 1.0:
            work += (1.0 - share) / 3  # the value on all data
        curve.record(work)
        tick(step / steps)
    return curve


def _work(before: Counts, after: Counts) -> float:
    """Of a step, in gradients; one forward and backward pass for the preconditioner."""
    products, values = after.nhev - before.nhev, after.nfev - before.nfev
    return 4 / 3 * products + values / 3 + 2 / 3 * (after.njev - before.njev) + 1


def train_adamw(
    pixels: Tensor,
    seed: int,
    epochs: int,
    tick: Tick,
    *,
    lr: float = ADAMW["lr"],
    batch_size: int = int(ADAMW["batch_size"]),
) -> Curve:
    """AdamW, fused, with a cosine schedule, shuffled mini-batches."""
    model = autoencoder(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    generator = torch.Generator().manual_seed(seed)
    curve = Curve("AdamW", model, pixels).start()
    every = max(1, epochs // 100)
    for epoch in range(1, epochs + 1):
        for batch in pixels[torch.randperm(len(pixels), generator=generator)].split(batch_size):
            optimizer.zero_grad()
            reconstruction_loss(model(batch), batch).backward()
            optimizer.step()
        schedule.step()
        if epoch % every == 0 or epoch == epochs:
            curve.record(float(epoch))
            tick(epoch / epochs)
    return curve


def train_lbfgs(pixels: Tensor, seed: int, iterations: int, tick: Tick) -> Curve:
    """L-BFGS with 50 pairs and a strong Wolfe search, full batch."""
    model = autoencoder(seed)
    chunk = max(1, iterations // 100)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=chunk,
        max_eval=10 * chunk,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )
    evaluations = 0

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = reconstruction_loss(model(pixels), pixels)
        loss.backward()
        return loss

    curve = Curve("L-BFGS", model, pixels).start()
    for done in range(chunk, iterations + 1, chunk):
        optimizer.step(closure)
        curve.record(float(evaluations))
        tick(done / iterations)
    return curve
