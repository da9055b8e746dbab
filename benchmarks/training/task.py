"""What is trained, and what trains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hesse

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


def hessian_free(sizes: Sizes, name: str = "HessianFree", **options: Any) -> Rival:
    """HessianFree on a new batch in every step."""

    def make(task: Task, model: nn.Module, batch: Batch) -> hesse.HessianFree:
        return hesse.HessianFree(hesse.Risk(model, task.loss, batch), **options)

    def step(optimizer: hesse.HessianFree, _: Task, __: nn.Module, batch: Batch) -> None:
        optimizer.step(data=batch)

    return Rival(name, make, step, sizes)


def adamw(
    lr: float, batch: int, *, clip: float | None = None, model: Any = None, name: str = "AdamW"
) -> Rival:
    """AdamW, fused, with the gradient clipped if that is asked for."""

    def make(_: Task, module: nn.Module, __: Batch) -> torch.optim.AdamW:
        return torch.optim.AdamW(module.parameters(), lr=lr, fused=True)

    def step(optimizer: torch.optim.AdamW, task: Task, module: nn.Module, data: Batch) -> None:
        optimizer.zero_grad()
        task.loss(module(data[0]), data[1]).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()

    return Rival(name, make, step, lambda _: batch, model)
