# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt, again where much was removed: twice is enough (Parlett 1998, section 6.9)."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.vectors.space import Space

# A vector that keeps less of its length is orthogonalised a second time (Daniel et al. 1976).
KEPT = 0.7


def orthogonalise(space: Space, basis: list[Tensor], rows: Tensor) -> Tensor:
    """Take from a row, or rows, what they have in the basis, blocks of rows, in place.

    Returns what was taken: (j,) or (j, k), float64.
    """
    first = _remove(space, basis, rows)
    removed = first.norm(dim=0).reshape(-1).tolist()
    left = [space.norm(row) for row in rows.view(-1, rows.shape[-1])]
    if all(r**2 > KEPT**2 * (r**2 + h**2) for r, h in zip(left, removed, strict=True)):
        return first
    return first + _remove(space, basis, rows)


def _remove(space: Space, basis: list[Tensor], rows: Tensor) -> Tensor:
    inners = [space.inners(block, rows) for block in basis]
    for block, h in zip(basis, inners, strict=True):
        if rows.ndim == 1:
            rows.addmv_(block.T, h, alpha=-1.0)
        else:
            rows.addmm_(h.T, block, alpha=-1.0)
    return torch.cat(inners).to("cpu", torch.float64)
