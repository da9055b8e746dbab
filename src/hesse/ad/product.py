# SPDX-License-Identifier: Apache-2.0
"""`Product`: what a one-shot mode gives, and the signature of such a mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from hesse.ad.variables import LeafFunction, Leaves


class Product(NamedTuple):
    """H v with what came along: the value always, the gradient where it is free or asked for."""

    product: list[Tensor]
    value: Tensor
    gradient: list[Tensor] | None
    custom_function: str | None = None
    """A user's `autograd.Function` in f, for which the product must be checked."""


Mode = Callable[[LeafFunction, Leaves, Leaves, bool], Product]
"""(f, x, v, with_gradient) -> Product."""
