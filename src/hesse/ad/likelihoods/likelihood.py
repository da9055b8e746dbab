# SPDX-License-Identifier: Apache-2.0
r"""`Likelihood`: a loss as the negative log-likelihood of independent rows, with weights.

$$ L = \sum_i \omega_i \bigl(-\log p(y_i \mid z_i)\bigr) + \text{const}, \qquad
   F_i = \mathrm{E}_{y \sim p(\cdot \mid z_i)}\bigl[s\, s^T\bigr], \quad
   s = -\frac{\partial \log p(y \mid z_i)}{\partial z_i} $$

A row is what one random draw is made for: a token, or one example with its independent entries. The
weights omega are those that the observed targets give the rows, so they stand outside of the
expectation. Everything here is a function of tensors without random numbers: whoever draws gives
uniform numbers, and a draw is the inverse of the distribution function at them.

References: Martens 2020, https://jmlr.org/papers/v21/17-678.html; Kunstner, Balles, Hennig 2019,
arXiv:1905.12558.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Likelihood(ABC):
    """The rows of one call of a loss.

    Args:
        parameters: z, the tensors that the distribution is given by, as the model computed them.
        omega: the weights of the rows, broadcastable to the first of the parameters.
        counts: what each row adds to the number by which a mean divides, as `omega`: the class
            weight of the target, one, or what the loss itself multiplies the row by.
    """

    parameters: tuple[Tensor, ...]
    omega: Tensor
    counts: Tensor

    is_natural: ClassVar[bool] = True
    """Whether z are natural parameters, so that the Fisher matrix is the Hessian of L in z."""

    @property
    def z(self) -> Tensor:
        """The first of the parameters without its graph, in float32 at least."""
        return wide(self.parameters[0])

    @property
    @abstractmethod
    def row_dim(self) -> int | None:
        """The dimension of z along which a row lies, from the end; None if each entry is a row."""

    @property
    @abstractmethod
    def noise_shape(self) -> torch.Size:
        """The shape of the uniform numbers that one draw for all rows takes."""

    @abstractmethod
    def product(self, u: Tensors) -> list[Tensor]:
        """omega F u, shaped like the parameters."""

    @abstractmethod
    def root(self, e: Tensors) -> list[Tensor]:
        """sqrt(omega) S e, shaped like the parameters, where S S' = F and e is shaped like them.

        The columns of S in all rows at once are those of e that are one in one place of each row.
        For random signs e, E[r r'] = omega F.
        """

    def root_adjoint(self, u: Tensors) -> list[Tensor]:
        """sqrt(omega) S' u, shaped like the parameters; S is diagonal unless a subclass says."""
        return self.root(u)

    is_singular: ClassVar[bool] = False
    """Whether F has a null vector, so that `short_root` has one column less in a row."""

    def short_root(self, e: Tensors) -> list[Tensor]:
        """As `root`, of an S whose last column in a row is zero where F is singular."""
        return self.root(e)

    @abstractmethod
    def draw(self, uniform: Tensor) -> Tensor:
        """A target for every row from p(. | z): the inverse distribution function at `uniform`.

        `uniform` has the shape `noise_shape`, and perhaps a leading dimension of draws, which
        the targets and their slopes then have too.
        """

    @abstractmethod
    def slope(self, y: Tensor) -> list[Tensor]:
        """sqrt(omega) times -d log p(y | z) / dz, shaped like the parameters."""

    def observed(self, slope: Tensors) -> list[Tensor]:
        """sqrt(omega) times the slope for the observed targets, from `slope` = dL/dz."""
        return [over_root(part, self.omega) for part in slope]

    def row_multiples(self, r: Tensors, t: Tensor) -> list[Tensor]:
        """r t, with a number t for every row."""
        return [wide(part) * t for part in r]

    def row_inner(self, r: Tensors, u: Tensors) -> Tensor:
        """r'u for every row, with a dimension of size one where the row lay.

        r and u may have leading dimensions of their own.
        """
        total: Tensor | None = None
        for a, b in zip(r, u, strict=True):
            part = wide(a) * wide(b)
            part = part if self.row_dim is None else part.sum(self.row_dim, keepdim=True)
            total = part if total is None else total + part
        assert total is not None
        return total


def wide(tensor: Tensor) -> Tensor:
    """A tensor without its graph, in float32 at least."""
    tensor = tensor.detach()
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def over_root(part: Tensor, weights: Tensor) -> Tensor:
    """part / sqrt(weights), zero where the weight is."""
    safe = torch.where(weights > 0, weights, torch.ones_like(weights)).sqrt()
    return torch.where(weights > 0, wide(part) / safe, torch.zeros_like(weights))
