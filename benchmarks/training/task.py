"""What is trained, and what trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]
Draw = Callable[[int, torch.Generator], Batch]


@dataclass(frozen=True)
class Task:
    """A model, its loss, and data that can be drawn in any number."""

    name: str
    model: Callable[[int], nn.Module]
    """Of a seed."""
    loss: Callable[[Tensor, Tensor], Tensor]
    draw: Draw
    error: Callable[[nn.Module], float]
    """What is reported; the clock stands meanwhile."""
    error_name: str
    solved: float
    """The error below which the run ends."""


Sizes = Callable[[int], int]
"""The number of examples of a step."""


@dataclass(frozen=True)
class Rival:
    """An optimiser with its settings, on the model of the task or on one of its own."""

    name: str
    make: Callable[[Task, nn.Module, Batch], Any]
    """The optimiser, from the first batch."""
    step: Callable[[Any, Task, nn.Module, Batch], None]
    sizes: Sizes
    model: Callable[[int], nn.Module] | None = None


def growing(first: int, last: int, every: int) -> Sizes:
    """Sizes that double every so many steps: few shapes, each of which is traced once.

    >>> [growing(100, 1000, 10)(step) for step in (0, 9, 10, 35, 99)]
    [100, 100, 200, 800, 1000]
    """
    return lambda step: min(last, first * 2 ** min(step // every, 30))
