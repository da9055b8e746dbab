# SPDX-License-Identifier: Apache-2.0
"""`CompactBFGS`: the limited-memory BFGS matrix itself, which can be solved with in part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.vectors.rows import stacked
from hesse.vectors.space import Space


class CompactBFGS:
    r"""B, the inverse of what `LimitedMemoryBFGS` multiplies with, from the rows of S and Y.

    $$ B = \theta I - W^T K^{-1} W, \qquad W = \begin{pmatrix} Y \\ \theta S \end{pmatrix}, \quad
       K = \begin{pmatrix} -D & L^T \\ L & \theta S S^T \end{pmatrix} $$

    with theta = y'y / s'y of the latest pair, D the diagonal and L the strictly lower part of S Y'.
    B is made of pairs (s, y / c) divided by |s|, c = |y| / |s| of the latest, and multiplied by c:
    squares of entries as small or large as f may be would leave the range of float32.

    Args:
        space: of the pairs.
        S, Y: pairs with s'y > 0, latest last.

    Source: Byrd, Nocedal & Schnabel 1994, doi:10.1007/BF01582063, theorem 2.3.

    >>> S, Y = torch.eye(2).split(1), torch.tensor([[2.0, 0.0], [0.0, 5.0]]).split(1)
    >>> B = CompactBFGS(Space.flat(2), [s[0] for s in S], [y[0] for y in Y])
    >>> B.product(torch.ones(2))
    tensor([2., 5.])
    >>> B.solve(torch.tensor([True, False]), torch.tensor([1.0, 0.0]))
    tensor([0.5000, 0.0000])
    """

    def __init__(self, space: Space, S: Sequence[Tensor], Y: Sequence[Tensor]) -> None:
        m = len(S)
        lengths, last = space.norms(*S), space.norm(Y[-1])
        self._space, self._unit = space, last / lengths[-1]
        scales = [length * self._unit for length in lengths] + lengths
        rows = (v / scale for v, scale in zip((*Y, *S), scales, strict=True))
        self._W = stacked(2 * m, rows)
        gram = space.gram(self._W, self._W)
        SY, SS = gram[m:, :m], gram[m:, m:]
        self._theta = float(gram[m - 1, m - 1] / SY[-1, -1])
        self._W[m:] *= self._theta
        scale = torch.tensor([1.0] * m + [self._theta] * m, dtype=gram.dtype)
        self._gram = scale[:, None] * gram * scale
        D, L = torch.diag(SY.diagonal()), SY.tril(-1)
        self._K = torch.cat([torch.cat([-D, L.T], 1), torch.cat([L, self._theta * SS], 1)])

    def product(self, v: Tensor) -> Tensor:
        """B v."""
        c = torch.linalg.solve(self._K, self._coordinates(v))
        return self._unit * (self._theta * v - self._combined(c))

    def solve(self, mask: Tensor, r: Tensor) -> Tensor:
        """p with B p = r on the variables of the mask, zero on the others, where r is zero too.

        By the formula of Sherman, Morrison & Woodbury for W on these variables.
        """
        capacitance = self._K - self._gram_on(mask) / self._theta
        c = torch.linalg.solve(capacitance, self._coordinates(r))
        return (r + mask * self._combined(c) / self._theta) / self._theta / self._unit

    def _coordinates(self, v: Tensor) -> Tensor:
        """W v, float64 on the CPU."""
        return self._space.inners(self._W, v).to(self._K)

    def _gram_on(self, mask: Tensor) -> Tensor:
        """W D W' for the diagonal D of the mask, from the columns of the rarer kind."""
        count, n = self._space.count(mask), self._space.n
        if count == n:
            return self._gram
        is_rare = 2 * count <= n
        columns = self._W[:, mask if is_rare else ~mask]
        part = self._space.gram(columns, columns)
        return part if is_rare else self._gram - part

    def _combined(self, coefficients: Tensor) -> Tensor:
        """W' c."""
        return coefficients.to(self._W) @ self._W
