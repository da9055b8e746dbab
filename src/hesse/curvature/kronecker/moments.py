# SPDX-License-Identifier: Apache-2.0
r"""What is summed over rows, vectors and batches for a block, by its kind.

$$ S = \sum_b c_b \sum_u \sum_r g g^T, \qquad A = \frac1R \sum_r a a^T, \qquad
   d_{ij} = \sum_b c_b \sum_u \sum_n \big(U^T \textstyle\sum_{r \in n} l_r r_r^T V\big)_{ij}^2 $$

All are sums, so that batches, and processes, can be added up. A weight that is used several times
has S_k and A_k for every use, and the block sum_k L_k x R_k; the Kronecker product nearest to it in
the sense of partial traces is (sum_k tr(R_k) L_k) x (sum_k tr(L_k) R_k) / tr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.layout import BlockLayout
from hesse.curvature.kronecker.row_products import (
    OneHotSums,
    arranged,
    gram,
    mean_over_uses,
    nonzero_rows,
    products,
    project_rows,
    second_moment,
    summed_squares,
)
from hesse.curvature.kronecker.rows import (
    OneHot,
    Rows,
    Values,
    dense,
    gradient_sums,
    rows_of_a,
    rows_of_g,
    with_ones,
)
from hesse.operators.batched_kronecker import Factors
from hesse.tracing.uses import Use

# A factor of a larger side, such as that of a vocabulary, is kept as its diagonal.
MOST_DENSE = 8192

# The exact block of biases and norms is dense up to this size, else its diagonal.
MOST_ROWS = 1024

Maps = Mapping[Use, ExampleMap | None]


@dataclass
class _Side:
    """The second moments of the rows on one side of a use: a sum, and the rows that it counts."""

    total: Tensor | float = 0.0
    count: Tensor | float = 0.0

    def add(
        self, rows: Rows, weight: float, active: Tensor | None, size: int, *, ones: bool = False
    ) -> None:
        """Add weight * rows' rows, and the number of the active ones; `ones`: appended to rows."""
        diagonal = isinstance(rows, OneHot) or size > MOST_DENSE
        moment = second_moment(rows, active, diagonal, ones=ones)
        if isinstance(self.total, Tensor):
            self.total.add_(moment, alpha=weight)
        else:
            self.total = _times(moment, weight)
        if active is not None:
            self.count = self.count + active.sum(0)

    @property
    def sums(self) -> list[Tensor]:
        """The sum, and the count where rows were counted."""
        return [part for part in (self.total, self.count) if isinstance(part, Tensor)]

    @sums.setter
    def sums(self, sums: Sequence[Tensor]) -> None:
        self.total, self.count = sums if len(sums) > 1 else (*sums, 0.0)

    def mean(self) -> Factors:
        """Over the rows that were counted; the sum is given up for it."""
        assert isinstance(self.total, Tensor) and isinstance(self.count, Tensor)
        total, self.total = self.total, 0.0
        count = self.count.clamp(min=1).view(-1, *[1] * (total.ndim - 1))
        return Factors(total.div_(count) if total.is_floating_point() else total / count)

    def sum(self) -> Factors:
        """Over all rows."""
        assert isinstance(self.total, Tensor)
        return Factors(self.total)


class KroneckerMoments:
    """S_k and A_k of a weight and its bias; then d, in a basis.

    Args:
        block: its layout.
        reduce: whether rows of an example are added up first.
        dtype: of the sums.
    """

    def __init__(self, block: BlockLayout, reduce: bool, dtype: torch.dtype) -> None:
        self._reduce, self._dtype = reduce, dtype
        self._groups, self._p, self._q = block.shape
        self._g_is_left = [use.g_is_left for use in block.uses]
        count = 1 if reduce and self._merges(block) else len(block.uses)
        self._S, self._A = [_Side() for _ in range(count)], [_Side() for _ in range(count)]
        self._basis: tuple[Factors, Factors] | None = None
        self.d = torch.zeros(0, dtype=dtype)

    def _merges(self, block: BlockLayout) -> bool:
        """Whether uses are like further rows of an example."""
        one_hot = any(use.rule == "embedding" for use in block.uses)
        return len(block.uses) > 1 and len(set(self._g_is_left)) == 1 and not one_hot

    def begin(self, block: BlockLayout, a: Values, maps: Maps) -> None:
        """Begin a batch, with the operands that do not depend on u."""
        self._block, self._a, self._maps = block, a, maps
        self._active: list[Tensor | None] = [None] * len(block.uses)
        self._rows_a: list[Rows | None] = [None] * len(block.uses)

    # -- Factors -----------------------------------------------------------------------------------

    def add(self, g: Values, weight: float) -> None:
        """Add the rows of one vector u to S."""
        rows = [self._g(use, g) for use in self._block.uses]
        for k, (use, own) in enumerate(zip(self._block.uses, rows, strict=True)):
            nonzero = nonzero_rows(own)
            seen = self._active[k]
            self._active[k] = nonzero if seen is None else seen | nonzero
            self._a_rows(k, use, g, ones=self._reduce)
        if self._reduce:
            rows = [
                self._map(use).sums(own) for use, own in zip(self._block.uses, rows, strict=True)
            ]
            if len(self._S) < len(rows):
                rows = [torch.stack(rows).sum(0)]
        for side, own, left in zip(self._S, rows, self._g_is_left, strict=False):
            side.add(own, weight, None, self._p if left else self._q)

    def end(self) -> None:
        """Add the rows of the batch to A, without those whose g is zero for every u."""
        rows, actives = [], []
        for use, own, active in zip(self._block.uses, self._rows_a, self._active, strict=True):
            if own is None or active is None:
                return
            if self._reduce:
                own, active = self._mean(use, own, active)
            rows.append(own)
            actives.append(active)
        if self._reduce and len(self._A) < len(rows):
            rows, actives = mean_over_uses(rows, actives)
        for side, own, active, left in zip(self._A, rows, actives, self._g_is_left, strict=False):
            if isinstance(own, Tensor):
                own = own.to(self._dtype)
            ones = self._block.has_bias and not self._reduce
            side.add(own, 1.0, active, self._q if left else self._p, ones=ones)
        self._rows_a = [None] * len(self._rows_a)

    def _mean(self, use: Use, rows: Rows, active: Tensor) -> tuple[Rows, Tensor]:
        """The mean of the active rows of every example."""
        count = self._map(use).sums(active.to(self._dtype))
        rows = dense(rows, self._dtype) * active[..., None]
        return self._map(use).sums(rows) / count.clamp(min=1)[..., None], count > 0

    @property
    def sums(self) -> list[Tensor]:
        """What is added up over processes: S and A of every use."""
        return [part for side in (*self._S, *self._A) for part in side.sums]

    @sums.setter
    def sums(self, sums: Sequence[Tensor]) -> None:
        S, A = sums[: len(self._S)], sums[len(self._S) :]
        for side, total in zip(self._S, S, strict=True):
            side.sums = [total]
        for side, both in zip(self._A, zip(A[::2], A[1::2], strict=True), strict=True):
            side.sums = both

    def factors(self) -> tuple[Factors, Factors]:
        """(L, R), of several uses by partial traces."""
        pairs = []
        for S, A, left in zip(self._S, self._A, self._g_is_left, strict=False):
            s, a = S.sum(), A.mean()
            a = Factors(a.entries.to(self._dtype))
            pairs.append((s, a) if left else (a, s))
        if len(pairs) == 1:
            return pairs[0]
        return _partial_traces(pairs)

    # -- The diagonal in a basis -------------------------------------------------------------------

    def use_basis(self, left: Factors, right: Factors) -> None:
        """Add up d in these orthonormal bases from now on."""
        self._basis = left, right
        shape = self._groups, self._p, self._q
        self.d = torch.zeros(shape, dtype=self._dtype, device=left.entries.device)

    def project(self, g: Values, weight: float) -> None:
        """Add the squares of the gradients of single examples for one u, in the basis, to d."""
        assert self._basis is not None
        pairs = []
        for k, use in enumerate(self._block.uses):
            of_g, of_a = self._basis if use.g_is_left else self._basis[::-1]
            rows_g = project_rows(self._g(use, g), of_g)
            rows_a = project_rows(self._a_rows(k, use, g), of_a, ones=self._block.has_bias)
            pairs.append((rows_g, rows_a) if use.g_is_left else (rows_a, rows_g))
        if len(pairs) == 1:
            (left, right), map_ = pairs[0], self._map(self._block.uses[0])
            if isinstance(left, OneHot) or isinstance(right, OneHot):
                squares = self._one_hot_squares(left, right, map_)
            elif len(left) == map_.examples:
                squares = products(*map(_squared, (left, right), self._basis))
            else:
                squares = self._summed_squares([(left, right)])
        else:
            squares = self._summed_squares(pairs)
        squares = _times(squares, weight)
        self.d.add_(squares)

    def _summed_squares(self, pairs: list[tuple[Rows, Rows]]) -> Tensor:
        """The sum over examples of the squares of the sum over their rows of l r'."""
        maps = [self._map(use) for use in self._block.uses]
        by_example = [
            (arranged(map_, left), arranged(map_, right))
            for map_, (left, right) in zip(maps, pairs, strict=True)
        ]
        return summed_squares(by_example, self._groups * self._p * self._q)

    def _one_hot_squares(self, left: Rows, right: Rows, map_: ExampleMap) -> Tensor:
        """The same for one-hot rows: rows of an example at the same index are added up first."""
        hot, other = (left, right) if isinstance(left, OneHot) else (right, left)
        assert isinstance(hot, OneHot) and isinstance(other, Tensor)
        groups = OneHotSums.of(hot, map_)
        sums = groups.sums(other[:, 0])
        squares = groups.by_index(sums * sums)
        return (squares if isinstance(left, OneHot) else squares.T)[None]

    # -- Rows --------------------------------------------------------------------------------------

    def _g(self, use: Use, g: Values) -> Tensor:
        return rows_of_g(use, g, self._a).to(self._dtype)

    def _a_rows(self, k: int, use: Use, g: Values, *, ones: bool = False) -> Rows:
        """The rows that do not depend on u; `ones`: with a 1 for the bias, if there is one."""
        known = self._rows_a[k]
        if known is None:
            known = rows_of_a(use, self._a, g[use.g].shape)
            if isinstance(known, Tensor):
                known = with_ones(known) if ones and self._block.has_bias else known
                known = known.to(self._dtype)
            self._rows_a[k] = known
        return known

    def _map(self, use: Use) -> ExampleMap:
        map_ = self._maps[use]
        assert map_ is not None
        return map_


def _times(fresh: Tensor, number: float) -> Tensor:
    """The product, in memory of its own or in that of a tensor that nobody else has."""
    if not fresh.is_floating_point():
        return fresh * number
    return fresh if number == 1.0 else fresh.mul_(number)


def _squared(projected: Tensor, basis: Factors) -> Tensor:
    """The squares of projected rows, which are those given in a basis of unit vectors."""
    return projected.square() if basis.is_diagonal else projected.square_()


def _partial_traces(pairs: list[tuple[Factors, Factors]]) -> tuple[Factors, Factors]:
    """The Kronecker product for a sum of several, all groups at once."""
    both = [_alike([side.entries for side in sides]) for sides in zip(*pairs, strict=True)]
    traces = [(L.trace, R.trace) for L, R in pairs]
    total = torch.stack([a * b for a, b in traces]).sum(0)
    safe = torch.where(total > 0, total, torch.ones_like(total))
    left = sum(_per_group(b, L) for (_, b), L in zip(traces, both[0], strict=True))
    right = sum(_per_group(a / safe, R) for (a, _), R in zip(traces, both[1], strict=True))
    assert isinstance(left, Tensor) and isinstance(right, Tensor)
    return Factors(left), Factors(right)


def _alike(sides: list[Tensor]) -> list[Tensor]:
    """All as diagonals, or all as matrices if one is and their size allows it."""
    if len({side.ndim for side in sides}) == 1:
        return sides
    return [torch.diag_embed(side) if side.ndim == 2 else side for side in sides]


def _per_group(number: Tensor, matrix: Tensor) -> Tensor:
    return number.view(-1, *[1] * (matrix.ndim - 1)) * matrix


class RowMoments:
    """The exact block of a bias, a norm, or a vector of positions: the sum of h h'."""

    def __init__(self, block: BlockLayout, dtype: torch.dtype) -> None:
        (size,) = block.shape
        self._dtype, self._diagonal = dtype, size > MOST_ROWS
        self._total: Tensor | float = 0.0

    def begin(self, block: BlockLayout, a: Values, maps: Maps) -> None:
        """Begin a batch."""
        self._block, self._a, self._maps = block, a, maps

    def add(self, g: Values, weight: float) -> None:
        """Add the gradients of single examples for one u."""
        h: Tensor | float = 0.0
        for use in self._block.uses:
            map_ = self._maps[use]
            assert map_ is not None
            h = h + gradient_sums(use, g, self._a, map_).to(self._dtype)
        assert isinstance(h, Tensor)
        self._total = self._total + weight * ((h * h).sum(0) if self._diagonal else gram(h))

    def end(self) -> None:
        """Nothing is left to add."""

    @property
    def sums(self) -> list[Tensor]:
        """What is added up over processes."""
        return [self._total] if isinstance(self._total, Tensor) else []

    @sums.setter
    def sums(self, sums: Sequence[Tensor]) -> None:
        (self._total,) = sums

    def factors(self) -> tuple[Factors, Factors]:
        """The factors of 1 x M."""
        assert isinstance(self._total, Tensor)
        return Factors(self._total.new_ones(1, 1)), Factors(self._total[None])


class ScalarMoments:
    """c with c n the trace of the block: the mean square of the gradient along random signs."""

    def __init__(self, block: BlockLayout, like: Tensor) -> None:
        self._n, self._like = block.n, like
        self._total = 0.0

    def begin(self, block: BlockLayout, a: Values, maps: Maps) -> None:
        """Begin a batch."""
        self._block = block

    def add(self, g: Values, weight: float) -> None:
        """Add the squares of the gradient along u."""
        if self._block.kind == "zero":
            return
        assert self._block.gradient is not None
        gradient = g[self._block.gradient].reshape(-1)
        index = self._block.parameter[1]
        gradient = gradient if index is None else gradient[index]
        self._total += weight * float(gradient.double().square().sum())

    def end(self) -> None:
        """Nothing is left to add."""

    @property
    def sums(self) -> list[Tensor]:
        """What is added up over processes."""
        return [torch.tensor(self._total, dtype=torch.float64)]

    @sums.setter
    def sums(self, sums: Sequence[Tensor]) -> None:
        self._total = float(sums[0])

    def factors(self) -> tuple[Factors, Factors]:
        """The factors of c x I."""
        c = self._like.new_full((1, 1), self._total / self._n)
        return Factors(c), Factors(self._like.new_ones(1, self._n))
