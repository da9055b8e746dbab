# SPDX-License-Identifier: Apache-2.0
r"""Products with Fisher matrices J' B J, where B has a small block for every row of a likelihood.

$$ F = \sum_i J_i^T B_i J_i, \qquad B_i = \omega_i F_i \ \text{(exact)}, \quad
   \tfrac1m \sum_j r_{ij} r_{ij}^T \ \text{(sampled)}, \quad r_i r_i^T \ \text{(empirical)} $$

with r = sqrt(omega) times the slope of -log p(y | z), y drawn from the model or observed. A product
costs J v and J'u, as with a Gauss-Newton matrix: the gradients of single examples are not taken.

References: Amari 1998, doi:10.1162/089976698300017746; Martens 2020,
https://jmlr.org/papers/v21/17-678.html; Kunstner, Balles, Hennig 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.ad.by_jacobian import ByJacobian
from hesse.ad.double_backward import twice_differentiable
from hesse.ad.examples import Examples
from hesse.ad.likelihoods.seen import LikelihoodCalls, SeenLikelihoods, SeenLoss, seen_loss
from hesse.ad.variables import BoundFunction, Leaves, tracked

Blocks = Literal["exact", "sampled", "empirical", "gradients"]
"""B: the Fisher matrix of a row, of drawn targets, of those observed, or the loss gradients of
examples, each over the weight that it has in the mean."""


@dataclass(frozen=True)
class LikelihoodLoss:
    """A loss of one batch, with what a Fisher matrix of it needs to know.

    Args:
        function: the variables -> a scalar.
        name: of the loss, for messages.
        blocks: which matrix B.
        uniform: the numbers from which targets are drawn, a tensor (m, *noise_shape) for each
            likelihood.
        examples: where the rows of each example are; None where rows count as they are.
    """

    function: Any
    name: str
    blocks: Blocks = "exact"
    uniform: tuple[Tensor, ...] = ()
    examples: Examples | None = None

    knows_its_leaves = True

    def __call__(self, x: Any) -> Tensor:
        return self.function(x)


class LikelihoodGraph(ByJacobian):
    """The likelihoods of a loss at x, and J = dz/dx of their parameters z, with their graphs."""

    has_gradient = True
    """Whether it is asked for the gradient of the loss."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None:
        with twice_differentiable():
            leaves = tracked(x)
            self._loss = seen(f, leaves)
        super().__init__(self._loss.z, leaves, self._loss.slope if self.has_gradient else None)

    @property
    def outputs(self) -> list[Tensor]:
        """The value of the loss, in a list."""
        return [self._loss.value]

    def check(self) -> None:
        """Raise unless the loss is a likelihood at these outputs."""
        self._loss.check()


class FisherGraph(LikelihoodGraph):
    """J' B J at x, with the value and the gradient; retains the graphs of z and J'u."""

    def __init__(self, f: BoundFunction, x: Leaves) -> None:
        super().__init__(f, x)
        self._blocks: Blocks = f.function.blocks
        self._examples: Examples | None = f.function.examples
        self._columns = columns(self._loss, self._blocks, f.function.uniform)

    @property
    def gradient(self) -> list[Tensor]:
        """J' dL/dz."""
        return self._jacobian.pulled_back

    def apply(self, quantity: str, direction: Leaves) -> list[Tensor] | Tensor:
        """J' B J v; or v' J' B J v."""
        return self.between(quantity, direction, self._times_blocks)

    def _times_blocks(self, u: Sequence[Tensor]) -> list[Tensor]:
        """B u, in the order of z."""
        pairs = self._loss.pairs(u)
        if self._blocks == "exact":
            return [part for likelihood, own in pairs for part in likelihood.product(own)]
        rows = [
            likelihood.row_inner(r, own)
            for (likelihood, own), r in zip(pairs, self._columns, strict=True)
        ]
        if self._examples is not None:
            rows = self._examples.summed(rows)
        if self._blocks == "gradients":
            rows = self._over_weights(rows)
        result = []
        for (likelihood, _), r, t in zip(pairs, self._columns, rows, strict=True):
            result += [part.mean(0) for part in likelihood.row_multiples(r, t)]
        return result

    def _over_weights(self, rows: list[Tensor]) -> list[Tensor]:
        """Sums of examples over the weights that these have in the mean."""
        assert self._examples is not None
        weights = self._examples.weights_of_rows(self._loss.likelihoods)
        safe = [torch.where(w > 0, w, torch.ones_like(w)) for w in weights]
        return [t / w for t, w in zip(rows, safe, strict=True)]


def columns(loss: SeenLikelihoods, blocks: Blocks, uniform: Sequence[Tensor]) -> list[list[Tensor]]:
    """r of each likelihood, with a leading dimension of draws; none where B is exact."""
    if blocks == "sampled":
        pairs = zip(loss.likelihoods, uniform, strict=True)
        return [likelihood.slope(likelihood.draw(numbers)) for likelihood, numbers in pairs]
    if blocks == "empirical":
        pairs = zip(loss.likelihoods, loss.slopes, strict=True)
        return [[r[None] for r in likelihood.observed(slope)] for likelihood, slope in pairs]
    if blocks == "gradients":
        return [[part[None] for part in parts] for parts in loss.slopes]
    return []


def seen(f: BoundFunction, leaves: Sequence[Tensor]) -> SeenLoss:
    """The likelihoods of the loss f at these leaves."""
    with LikelihoodCalls(any_rows=f.function.blocks == "gradients") as noted:
        value = f(leaves)
    return seen_loss(value, noted.calls, leaves, f.function.name)
