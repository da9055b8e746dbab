# SPDX-License-Identifier: Apache-2.0
"""What steps of gradient descent a sharpness is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hesse.errors import ArgumentError, is_number


@dataclass(frozen=True)
class Rates:
    """eta and beta of gradient descent, how the momentum is applied, and what else they do."""

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    weight_decay: float = 0.0
    """Of the optimizer, which the loss does not have."""

    def __post_init__(self) -> None:
        if not (is_number(self.learning_rate) and self.learning_rate >= 0.0):
            raise ArgumentError(
                expected="learning_rate >= 0, or the optimizer that has it",
                got=repr(self.learning_rate),
                remedy="Leave it out to measure without it.",
            )
        if not (is_number(self.momentum) and 0.0 <= self.momentum < 1.0):
            raise ArgumentError(
                expected="momentum, 0 <= beta < 1",
                got=repr(self.momentum),
                remedy="Leave it out for none.",
            )

    @property
    def largest_curvature(self) -> float:
        r"""The eigenvalue up to which steps on a quadratic stay bounded, weight decay included.

        $$ \frac{2}{\eta}, \qquad \frac{2 (1 + \beta)}{\eta (1 - d)}, \qquad
           \frac{2 (1 + \beta)}{(1 + 2 \beta)\, \eta} $$

        for gradient descent, heavy-ball momentum with the dampening d (as in `torch.optim.SGD`),
        and Nesterov's.

        >>> Rates(0.5).largest_curvature, Rates(0.5, 0.5).largest_curvature
        (4.0, 6.0)
        """
        if self.learning_rate == 0.0:
            return float("inf")
        return self._times_rate / self.learning_rate

    def largest_rate(self, curvature: float) -> float | None:
        """The learning rate up to which they do, with this largest eigenvalue of the loss."""
        curvature += self.weight_decay
        return self._times_rate / curvature if curvature > 0.0 else None

    def stability(self, curvature: float) -> float:
        """The largest eigenvalue, from that of the loss, over the limit: 1 is the edge."""
        return (curvature + self.weight_decay) / self.largest_curvature

    @property
    def _times_rate(self) -> float:
        beta = self.momentum
        undamped = 1.0 - self.dampening if beta else 1.0
        return 2.0 * (1.0 + beta) / (1.0 + 2.0 * beta * self.nesterov) / undamped


def rates_of(
    learning_rate: Any, momentum: float, nesterov: bool, weight_decay: float = 0.0
) -> Rates | None:
    """The rates of a call; of an optimizer its own, with the largest learning rate of its groups.

    None without a learning rate, for optimizers that precondition, since the sharpness that bounds
    their steps is not that of H, and for those that ascend.

    Args:
        learning_rate: eta, an optimizer, or None.
        momentum, nesterov: of a call that gives eta.
        weight_decay: that of the loss: what an optimizer has beyond it is added to its Hessian.
    """
    if learning_rate is None:
        return None
    groups = getattr(learning_rate, "param_groups", None)
    if groups is None:
        return Rates(learning_rate, momentum, nesterov)
    inner = getattr(learning_rate, "optimizer", learning_rate)  # within accelerate
    if not isinstance(inner, torch.optim.SGD):
        return None
    group = max(groups, key=lambda group: float(group["lr"]))
    momentum, dampening = float(group["momentum"]), float(group["dampening"])
    if group["maximize"] or dampening >= 1.0:
        return None
    decay = max(float(group["weight_decay"]) for group in groups)
    return Rates(
        learning_rate=float(group["lr"]),
        momentum=momentum,
        nesterov=bool(group["nesterov"]),
        dampening=dampening,
        weight_decay=max(decay - weight_decay, 0.0),
    )
