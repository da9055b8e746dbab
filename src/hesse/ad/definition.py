# SPDX-License-Identifier: Apache-2.0
"""What a kind of product is: the Hessian, the Gauss-Newton matrix; and its form as a kept graph."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from hesse.ad.variables import Leaves


class Retained(Protocol):
    """A product at a point by the graph of its derivatives: what a program must agree with."""

    @property
    def value(self) -> Tensor: ...
    @property
    def gradient(self) -> list[Tensor]: ...
    @property
    def custom(self) -> str | None:
        """The name of a user's `autograd.Function` in f, if there is one."""
        ...

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes of the graph of f."""
        ...

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        ...

    def check(self) -> None:
        """Raise if it is not the derivative of f for another reason than rounding."""
        ...

    def product(self, v: Leaves) -> list[Tensor]: ...


class Kind(Protocol):
    """Which product it is: the Hessian, the Gauss-Newton matrix."""

    @property
    def call(self) -> str: ...
    @property
    def quantities(self) -> tuple[str, ...]:
        """Methods of the retained form that take a direction: "product", perhaps "curvature"."""
        ...

    def value(self, function: Any, x: Leaves) -> Tensor:
        """f(x) as f computes it."""
        ...

    def retain(self, function: Any, x: Leaves) -> Retained:
        """The product at x."""
        ...
