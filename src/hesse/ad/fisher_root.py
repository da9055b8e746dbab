# SPDX-License-Identifier: Apache-2.0
"""Products with J' S and S' J, where S S' = B is the matrix in the middle of a Fisher matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.ad.by_jacobian import in_dtypes_of
from hesse.ad.fisher import LikelihoodGraph
from hesse.ad.variables import Leaves


class FisherRootGraph(LikelihoodGraph):
    """J' S at x; retains the graphs of z and J'u."""

    has_gradient = False

    @property
    def gradient(self) -> list[Tensor]:
        """None: the matrix is not that of a scalar."""
        return []

    def apply(self, quantity: str, direction: Leaves) -> Sequence[Tensor]:
        """J' S e, or S' J v."""
        if quantity == "product":
            Se = [part for each, own in self._loss.pairs(direction) for part in each.root(own)]
            return self._jacobian.pull_back(in_dtypes_of(self._loss.z, Se))
        pairs = self._loss.pairs(self._jacobian.push_forward(direction))
        return [part for each, own in pairs for part in each.root_adjoint(own)]


@dataclass(frozen=True)
class ScaledLoss:
    """c times the loss of a batch, so that the root of its matrix has sqrt(c) in it."""

    function: Any
    factor: float

    knows_its_leaves = True  # tested with the risk

    def __call__(self, x: Any) -> Tensor:
        return self.factor * self.function(x)
