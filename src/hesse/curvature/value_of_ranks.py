# SPDX-License-Identifier: Apache-2.0
"""`ValueOfRanks`: the value and the gradient of f, of data that several processes share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.operators.algebra import LinearOperator
from hesse.ranks import Ranks
from hesse.vectors.space import Tree


class ValueOfRanks(LinearOperator):
    """An operator of f, to which `local` is that of the data of this process.

    The value is a sum over processes.
    """

    local: Any
    ranks: Ranks
    _gradient: Any
    """The flat gradient, a cached property of each kind of operator."""

    @property
    @public("{self}.value", nested=False)
    def value(self) -> Tensor:
        """f(x), a scalar tensor, of the data of all processes; computed at the first use."""
        return self._value.clone()

    @property
    def gradient(self) -> Tree:
        """grad f(x), a tree like x."""
        return self.domain.unflatten(self.flat_gradient)

    @property
    @public("{self}.gradient", nested=False)
    def flat_gradient(self) -> Tensor:
        """grad f(x), flat; computed at the first use."""
        return self._gradient.clone()

    @cached_property
    def _value(self) -> Tensor:
        like = torch.empty((), dtype=torch.float64, device=self.device)
        total = self.ranks.sum_of(lambda: self.local.value.to(like), like)
        return total.to(self.dtype)


class NoValue(LinearOperator):
    """The part of a rank without data: f is zero."""

    mode, plan = "no data", "no data on this rank"

    @property
    def value(self) -> Tensor:
        return torch.zeros((), dtype=self.dtype, device=self.device)

    @property
    def flat_gradient(self) -> Tensor:
        return self.domain.zeros()
