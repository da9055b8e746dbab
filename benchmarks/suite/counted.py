# SPDX-License-Identifier: Apache-2.0
"""A function that counts what any solver asks of it, and remembers the values on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

# What each costs in gradients: a forward pass is a third of one, a backward pass the rest, and a
# Hessian product goes through both passes of the gradient backwards.
FORWARD, BACKWARD, PRODUCT = 1 / 3, 2 / 3, 2.0


class OverLimit(BaseException):
    """A run took more than it may. No solver catches it."""


@dataclass
class Counts:
    """Forward passes, backward passes to a gradient, and Hessian products."""

    values: int = 0
    gradients: int = 0
    products: int = 0

    @property
    def cost(self) -> float:
        """All of them, in gradients."""
        return FORWARD * self.values + BACKWARD * self.gradients + PRODUCT * self.products


@dataclass
class Step:
    """A value lower than all before, and what it took to get there."""

    value: float
    cost: float
    products: int
    seconds: float


@dataclass
class Counted:
    """f, and what was asked of it: hooks of autograd see every pass, whoever starts it.

    Args:
        f: scalar function of a flat tensor.
        max_cost, max_seconds: beyond which `OverLimit` is raised.

    >>> f = Counted(lambda x: (x**4).sum())
    >>> x = torch.ones(2, requires_grad=True)
    >>> g, = torch.autograd.grad(f(x), x, create_graph=True)
    >>> h, = torch.autograd.grad(g, x, torch.ones(2))
    >>> f.counts, h
    (Counts(values=1, gradients=1, products=1), tensor([12., 12.]))
    """

    f: Callable[[Tensor], Tensor]
    max_cost: float = float("inf")
    max_seconds: float = float("inf")
    counts: Counts = field(default_factory=Counts)
    path: list[Step] = field(default_factory=list)
    began: float = field(default_factory=time.process_time)
    _best: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.view_as(x)
            x.register_hook(self._on_gradient)
        value = self.f(x)
        self.add(values=1)
        self._note(float(value.detach()), x)
        return value

    def best(self, x: Tensor) -> Tensor:
        """Where the value was least; x if it was nowhere finite."""
        return x if self._best is None else self._best

    def add(self, *, values: int = 0, gradients: int = 0, products: int = 0) -> None:
        """Count something; raise beyond the limits."""
        self.counts.values += values
        self.counts.gradients += gradients
        self.counts.products += products
        if self.counts.cost > self.max_cost or self.seconds > self.max_seconds:
            raise OverLimit

    @property
    def seconds(self) -> float:
        """Of the processor, since it was made."""
        return time.process_time() - self.began

    def _on_gradient(self, g: Tensor) -> None:
        """A backward pass came to x: of f, or at the end of a product, which has been counted."""
        self.add(gradients=1)
        if g.requires_grad:
            g.register_hook(self._on_product)

    def _on_product(self, v: Tensor) -> None:
        """A backward pass through the gradient begins; it will come to x once more."""
        self.add(gradients=-1, products=1)

    def _note(self, value: float, x: Tensor) -> None:
        if math.isfinite(value) and (not self.path or value < self.path[-1].value):
            self._best = x.detach().clone()
            counts = self.counts
            self.path.append(Step(value, counts.cost, counts.products, self.seconds))
