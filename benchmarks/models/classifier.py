"""A classifier of three layers, trained a little, for the spectra.

Its units are piecewise linear, so that the exact diagonal of its Hessian is cheap (see
`benchmarks.spectra.exact`). A few steps separate the spectrum into outliers, about one for each
class, and a bulk on both sides of zero; a fifth of the labels is random, so that training does not
make all of it vanish.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.seeded import integers, normal, seeded
from benchmarks.problem import ModelAndLoss, Problem

CLASSES = 10
STEPS, QUICK_STEPS = 6, 200


def classifier(quick: bool = False) -> Problem:
    """784-1000-300-10 with 1,088,310 parameters, 256 examples; quick: 20-30-20-10 with 1,460."""
    widths, count = ((20, 30, 20, CLASSES), 64) if quick else ((784, 1000, 300, CLASSES), 256)
    inputs, labels = _examples(count, widths[0])
    model = seeded(lambda: _network(*widths))
    parts = ModelAndLoss(model, nn.CrossEntropyLoss(), inputs, labels)
    _train(parts, QUICK_STEPS if quick else STEPS)
    return Problem.of("classifier", parts)


def _network(pixels: int, first: int, second: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(pixels, first), nn.ReLU(),
        nn.Linear(first, second), nn.ReLU(),
        nn.Linear(second, classes),
    )  # fmt: skip


def _examples(count: int, pixels: int) -> tuple[Tensor, Tensor]:
    """A pattern for each class and noise; of the labels a fifth is drawn anew."""
    classes = integers(CLASSES, count)
    inputs = normal(CLASSES, pixels)[classes] + 3 * normal(count, pixels, seed=3)
    drawn = torch.arange(count) % 5 == 0
    return inputs, torch.where(drawn, integers(CLASSES, count, seed=4), classes)


def _train(parts: ModelAndLoss, steps: int) -> None:
    """Full-batch Adam."""
    adam = torch.optim.Adam(parts.model.parameters(), lr=3e-4)
    for _ in range(steps):
        adam.zero_grad()
        parts.loss(parts.model(parts.inputs), parts.targets).backward()
        adam.step()
    adam.zero_grad()
