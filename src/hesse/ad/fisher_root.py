# SPDX-License-Identifier: Apache-2.0
"""Products with J' S and S' J, where S S' = B is the matrix in the middle of a Fisher matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.ad.by_jacobian import ByJacobian
from hesse.ad.double_backward import twice_differentiable
from hesse.ad.fisher import seen
from hesse.ad.variables import BoundFunction, Leaves, tracked


class FisherRootGraph(ByJacobian):
    """J' S at x; retains the graphs of z and J'u."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None:
        with twice_differentiable():
            leaves = tracked(x)
            self._loss = seen(f, leaves)
        super().__init__(self._loss.z, leaves)

    @property
    def outputs(self) -> list[Tensor]:
        """The value of the loss, in a list."""
        return [self._loss.value]

    @property
    def gradient(self) -> list[Tensor]:
        """None: the matrix is not that of a scalar."""
        return []

    def check(self) -> None:
        """Raise unless the loss is a likelihood at these outputs."""
        self._loss.check()

    def apply(self, quantity: str, direction: Leaves) -> Sequence[Tensor]:
        """J' S e, or S' J v."""
        if quantity == "product":
            rooted = self._of_each("root", direction)
            return self._jacobian.pull_back(_like(rooted, self._loss.z))
        return self._of_each("root_adjoint", self._jacobian.push_forward(direction))

    def _of_each(self, method: str, parts: Leaves) -> list[Tensor]:
        """What a method of each likelihood makes of its part, in the order of z."""
        rest, results = iter(parts), []
        for likelihood in self._loss.likelihoods:
            own = [next(rest) for _ in likelihood.parameters]
            results += getattr(likelihood, method)(own)
        return results


@dataclass(frozen=True)
class ScaledLoss:
    """c times the loss of a batch, so that the root of its matrix has sqrt(c) in it."""

    function: Any
    factor: float

    knows_its_leaves = True  # tested with the risk

    def __call__(self, x: Any) -> Tensor:
        return self.factor * self.function(x)


def _like(parts: Sequence[Tensor], z: Sequence[Tensor]) -> list[Tensor]:
    return [part.to(like.dtype) for part, like in zip(parts, z, strict=True)]
