# SPDX-License-Identifier: Apache-2.0
"""`ByJacobian`: the base of linearisations that multiply by J = dz/dx and its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hesse.ad.jacobian import JacobianGraph
from hesse.ad.variables import Leaves


class ByJacobian:
    """What a linearisation says of the graphs of z and of J'u, and products J' B J v.

    Args:
        z: the outputs, with their graph.
        x: the leaves that they depend on.
        slope: that of the loss in z, where there is one; J' times it is the gradient.
    """

    needs_check = False

    def __init__(
        self, z: list[Tensor], x: list[Tensor], slope: Sequence[Tensor] | None = None
    ) -> None:
        self._jacobian = JacobianGraph(z, x, slope)

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes of the graph of z."""
        return self._jacobian.node_names

    @property
    def custom_function(self) -> str | None:
        """A user's `autograd.Function` on the way to z; it has been checked."""
        return self._jacobian.custom_function

    @property
    def retained(self) -> list[Tensor]:
        """The outputs and J'u, with their graphs."""
        return self._jacobian.retained

    def check(self) -> None:
        """There is nothing to check."""

    def between(
        self, quantity: str, v: Leaves, times: Callable[[list[Tensor]], Sequence[Tensor]]
    ) -> list[Tensor] | Tensor:
        """J' B J v, where `times` gives B u; or v' J' B J v, without the backward pass: half."""
        u = self._jacobian.push_forward(v)
        Bu = times(u)
        if quantity == "product":
            return self._jacobian.pull_back(in_dtypes_of(u, Bu))
        parts = [(a * b).sum(dtype=torch.float64) for a, b in zip(u, Bu, strict=True)]
        return torch.stack(parts).sum()


def in_dtypes_of(z: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts, each in the dtype of its z, which backward passes need."""
    return [part.to(like.dtype) for like, part in zip(z, parts, strict=True)]
