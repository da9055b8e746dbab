"""Functions without layers: the chained Rosenbrock function and logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.seeded import normal, seeded
from benchmarks.problem import ModelAndLoss, Params, Problem


def rosenbrock(n: int = 1_000_000) -> Problem:
    """sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2 at (-1.2, 1, -1.2, 1, ...)."""
    x = torch.tensor([-1.2, 1.0]).repeat(n // 2)
    return Problem("rosenbrock", _rosenbrock, {"x": x}, jax="rosenbrock")


def _rosenbrock(params: Params) -> Tensor:
    x = params["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def logistic_regression(examples: int = 20_000, features: int = 500) -> Problem:
    """Two classes of 20,000 examples with 500 features."""
    inputs, noise = normal(examples, features), normal(examples, 1, seed=5)
    slope = normal(features, 1, seed=6) / features**0.5
    targets = (inputs @ slope + noise > 0).float()
    model = seeded(lambda: nn.Linear(features, 1))
    parts = ModelAndLoss(model, nn.BCEWithLogitsLoss(), inputs, targets)
    return Problem.of("logistic-regression", parts, jax="logistic_regression")
