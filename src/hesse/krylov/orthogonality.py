# SPDX-License-Identifier: Apache-2.0
r"""How orthogonal a Lanczos basis still is, known without looking at it (Simon 1984).

$$ W = V V^T, \qquad v_i^T \Bigl( A v_j - \sum_k h_k v_k \Bigr) = (T W)_{ij} - (W h)_i
   + \text{rounding} $$

The products v_i'A v_j and v_j'A v_i are the same number, so what the recurrence leaves along
earlier rows follows from T and from the overlaps so far. As long as these are below sqrt(eps) the
matrix T is that of an orthonormal basis to eps, and a pass over the basis at every step is not
needed. The formula holds for any T: tridiagonal, banded, or with the arrow of a thick restart.

What rounding adds is not known. It is drawn at random, several times over, and the worst counts:
one draw may grow less than rounding did.

References: Simon 1984, doi:10.1090/S0025-5718-1984-0725988-X; Wu & Simon 2000,
doi:10.1137/S0895479898334605.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_DRAWS = 8


class Orthogonality:
    """Possible overlaps W = V V' of the rows of a basis, shape (draws, size, size).

    Args:
        size: rows at most.
        eps: unit roundoff of the products and of the basis.
    """

    saved = ("W", "noise", "generator")

    def __init__(self, size: int, eps: float) -> None:
        self.eps = self.noise = eps  # the noise is a share of the largest product
        self.generator = torch.Generator().manual_seed(0)
        self.W = torch.zeros(_DRAWS, size, size, dtype=torch.float64)
        self.reset()

    def reset(self) -> None:
        """All rows were made orthonormal to rounding."""
        self.W.copy_(self.eps * self._draw(*self.W.shape[1:]))
        self.W.diagonal(dim1=1, dim2=2).fill_(1.0)

    def _draw(self, *shape: int) -> Tensor:
        size = (_DRAWS, *shape)
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def make_room(self, size: int) -> None:
        """Let there be so many rows."""
        more = size - self.W.shape[1]
        if more <= 0:
            return
        self.W = pad(self.W, (0, more, 0, more))
        self.W.diagonal(dim1=1, dim2=2).fill_(1.0)

    def left(self, T: Tensor, j: int, h: Tensor, largest: float) -> Tensor:
        """What w = A v_j - sum_i h_i v_i may have along each row: shape (draws, rows).

        From row j on, h was measured. `largest`: the norm of the largest product so far.
        """
        rows = len(h)
        W = self.W[:, :rows, :rows]
        overlaps = W[:, :, j] @ T[:j, :rows].T - W[:, :j] @ h
        return pad(overlaps, (0, rows - j)) + self.noise * largest * self._draw(rows)

    def suffices(self, left: Tensor, rest: float) -> bool:
        """Whether w of norm `rest` may become a row with these components along the others."""
        return float(left.abs().max()) <= self.eps**0.5 * rest

    def learn(self, expected: Tensor, found: Tensor, largest: float) -> None:
        """Compare what was expected along earlier rows with what a pass over them has found."""
        if len(found) and largest:
            excess = float(found.abs().max() - expected.abs().max())
            self.noise += max(excess, 0.0) / largest

    def set(self, row: int, overlaps: Tensor | None = None) -> None:
        """A new row; without overlaps one that was orthogonalised against all others."""
        if overlaps is None:
            overlaps = self.eps * self._draw(row)
        count = overlaps.shape[1]
        self.W[:, row, :count] = self.W[:, :count, row] = overlaps
