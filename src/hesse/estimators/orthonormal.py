# SPDX-License-Identifier: Apache-2.0
"""An orthonormal basis that grows by blocks of rows.

The blocks are never joined: where rows grow in one tensor, each growth copies all rows that there
were, and holds them twice meanwhile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.krylov.gram_schmidt import orthogonalise
from hesse.vectors.space import Space

_PANEL = 16  # rows that are orthogonalised against all earlier ones together
_KEPT = 0.1  # a row that keeps less of its length is orthogonalised against all blocks again
_TINY = 1e-100  # the coordinate of a row of zeros


def project_out(space: Space, basis: list[Tensor], rows: Tensor) -> Tensor:
    """The rows without their components along the basis."""
    if not basis:
        return rows
    rest = rows.clone()
    orthogonalise(space, basis, rest)
    return rest


def extend(
    space: Space, basis: list[Tensor], rows: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Turn the rows, in place, into the next block of the basis.

    Returns the block and the coordinates R of the rows in the whole basis: R'Q = rows, R upper
    triangular. A row that lies in the span of the basis to rounding becomes a random direction,
    with that rounding error as its coordinate, so that R stays regular.
    """
    j, rows = sum(map(len, basis)), rows.contiguous()
    R = torch.zeros(j + len(rows), len(rows), dtype=torch.float64)
    for start in range(0, len(rows), _PANEL):
        panel, known = rows[start : start + _PANEL], [*basis, rows[:start]]
        rounding = [torch.finfo(space.dtype).eps * size for size in space.norms(*panel)]
        known_parts, lengths = orthogonalise(space, known, panel)
        R[: j + start, start : start + len(panel)] = known_parts
        for i, row in enumerate(panel):
            before, column = [*known, panel[:i]], R[:, start + i]
            h, length = _orthogonalise_in_panel(space, before, row, lengths[i])
            column[: j + start + i] += h
            if length > 10 * rounding[i]:
                row /= length
            else:
                _turn(space, before, row, generator)
                length = max(rounding[i], _TINY)
            column[j + start + i] = length
    return rows, R


def _orthogonalise_in_panel(
    space: Space, before: list[Tensor], row: Tensor, length: float
) -> tuple[Tensor, float]:
    """Subtract a row's components along the last block; those along the others were subtracted.

    Returns the components, and the length that is left of `length`.
    """
    others = torch.zeros(sum(map(len, before[:-1])), dtype=torch.float64)
    own, (left,) = orthogonalise(space, before[-1:], row)
    h = torch.cat([others, own])
    if left < _KEPT * length:  # what was left along the others weighs more now
        more, (left,) = orthogonalise(space, before, row)
        h += more
    return h, left


def _turn(
    space: Space, basis: list[Tensor], row: Tensor, generator: torch.Generator | None
) -> None:
    """Replace a row of rounding by a random unit vector that is orthogonal to the basis."""
    row.copy_(space.gaussian(generator))
    _, (length,) = orthogonalise(space, basis, row)
    row /= length
