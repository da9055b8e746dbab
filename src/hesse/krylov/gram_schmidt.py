# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt, repeated where much was removed: twice is enough (Parlett 1998, section 6.9)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.vectors.space import Space

# A vector that keeps less of its length is orthogonalised a second time (Daniel et al. 1976).
KEPT = 0.7


def orthogonalise(space: Space, basis: list[Tensor], rows: Tensor) -> tuple[Tensor, list[float]]:
    """Subtract from a row, or rows, their components along the basis, blocks of rows, in place.

    Two reductions; two more if it is done twice.

    Returns:
        The components, (j,) or (j, k), float64; the norms of what is left of the rows.

    >>> row = torch.tensor([1.0, 2.0])
    >>> orthogonalise(Space.flat(2), [torch.tensor([[1.0, 0.0]])], row), row
    ((tensor([1.], dtype=torch.float64), [2.0]), tensor([0., 2.]))
    """

    def remove() -> Tensor:
        inners = space.inners_of(basis, rows)
        for block, h in zip(basis, inners, strict=True):
            if rows.ndim == 1:
                rows.addmv_(block.T, h, alpha=-1.0)
            else:
                rows.addmm_(h.T, block, alpha=-1.0)
        return torch.cat(inners).to("cpu", torch.float64)

    return twice_if_needed(space, remove, rows)


def twice_if_needed(
    space: Space, remove: Callable[[], Tensor], rows: Tensor
) -> tuple[Tensor, list[float]]:
    """The components that `remove` subtracts from the rows, and the norms that are left.

    `remove` is called again if a row has lost much of its length, most of which is rounding then.
    """
    first = remove()
    along = first.norm(dim=0).reshape(-1).tolist()
    left = _norms(space, rows)
    if all(r >= KEPT * math.hypot(h, r) for r, h in zip(left, along, strict=True)):
        return first, left
    return first + remove(), _norms(space, rows)


def _norms(space: Space, rows: Tensor) -> list[float]:
    return space.norms(*(rows if rows.ndim == 2 else rows[None]))
