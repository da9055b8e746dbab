# SPDX-License-Identifier: Apache-2.0
"""The learning rate and the momentum that a sharpness is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hesse.errors import ArgumentError, is_number


@dataclass(frozen=True)
class Rates:
    """eta and beta of gradient descent, and how the momentum is applied."""

    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False

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
        r"""The eigenvalue up to which steps on a quadratic stay bounded.

        $$ \frac{2}{\eta}, \qquad \frac{2 (1 + \beta)}{\eta}, \qquad
           \frac{2 (1 + \beta)}{(1 + 2 \beta)\, \eta} $$

        for gradient descent, heavy-ball momentum (as in `torch.optim.SGD`), and Nesterov's.

        >>> Rates(0.5).largest_curvature, Rates(0.5, 0.5).largest_curvature
        (4.0, 6.0)
        """
        if self.learning_rate == 0.0:
            return float("inf")
        return self._times_rate / self.learning_rate

    def largest_rate(self, curvature: float) -> float | None:
        """The learning rate up to which they do, with this eigenvalue as the largest."""
        return self._times_rate / curvature if curvature > 0.0 else None

    @property
    def _times_rate(self) -> float:
        beta = self.momentum
        return 2.0 * (1.0 + beta) / (1.0 + 2.0 * beta * self.nesterov)


def rates_of(learning_rate: Any, momentum: float, nesterov: bool) -> Rates | None:
    """The rates of a call; of an optimizer its own, with the largest learning rate of its groups.

    None without a learning rate, and for optimizers that precondition: the sharpness that bounds
    their steps is not that of H.
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
    return Rates(float(group["lr"]), float(group["momentum"]), bool(group["nesterov"]))
