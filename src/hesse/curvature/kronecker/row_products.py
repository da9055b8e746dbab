# SPDX-License-Identifier: Apache-2.0
"""Products of rows: second moments, sums of outer products, rows in another basis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.rows import OneHot, Rows, with_ones
from hesse.operators.batched_kronecker import Factors
from hesse.vectors.matmul import empty_matrix, matmul

_CHUNK = 1 << 24  # entries of gradients of single examples at a time

# Entries of a row that are looked at before all of them are.
_FIRST = 16

# From this size on, one half of X'X takes less time than all of it, in parts of at least that size.
_SMALL_GRAM, _WHOLE_GRAM = 256, 128


def nonzero_rows(rows: Tensor) -> Tensor:
    """Which rows (R, groups, d) have an entry other than zero.

    Nearly always the first entries tell. Where they do not, the extremes of a row take a fifth of
    the time of `any`.
    """
    found = (rows[..., :_FIRST] != 0).any(-1)
    if bool(found.all()):
        return found
    return (rows.amax(-1) != 0) | (rows.amin(-1) != 0)


def second_moment(
    rows: Rows, active: Tensor | None, diagonal: bool, *, ones: bool = False
) -> Tensor:
    """(groups, d, d), or its diagonal (groups, d); `ones`: of rows with a 1 appended."""
    if isinstance(rows, OneHot):
        weights = None if active is None else active[:, 0].double()
        kept = rows.index >= 0
        weights = weights[kept] if weights is not None else None
        return torch.bincount(rows.index[kept], weights, rows.size)[None]
    is_masked = active is not None and not bool(active.all())
    if ones and (is_masked or diagonal or rows.shape[1] > 1):
        rows, ones = with_ones(rows), False
    if active is not None and is_masked:
        rows = rows * active[..., None]
    if diagonal:
        return (rows * rows).sum(0)
    if rows.shape[1] == 1:
        return gram(rows[:, 0], ones=ones)[None]
    return products(rows, rows)


def gram(X: Tensor, *, ones: bool = False) -> Tensor:
    """X'X, of which only one half is computed where that pays; `ones`: of [X 1], not formed."""
    d = X.shape[1]
    if d < _SMALL_GRAM:
        X = with_ones(X) if ones else X
        return X.T @ X
    whole = empty_matrix(d + ones, d + ones, X)
    _fill_gram(whole[:d, :d], X)
    if ones:
        whole[d, :d] = whole[:d, d] = X.sum(0)
        whole[d, d] = len(X)
    return whole


def _fill_gram(result: Tensor, X: Tensor) -> None:
    """X'X of the left and the right half of X, and one product of the two, which stands twice."""
    d = X.shape[1]
    if d <= _WHOLE_GRAM:
        torch.mm(X.T, X, out=result)
        return
    half = -(-d // 32) * 16  # rows begin with a cache line
    left, right = X[:, :half], X[:, half:]
    torch.mm(right.T, left, out=result[half:, :half])
    result[:half, half:] = result[half:, :half].T
    _fill_gram(result[:half, :half], left)
    _fill_gram(result[half:, half:], right)


def products(left: Tensor, right: Tensor) -> Tensor:
    """(groups, p, q): the sum over rows of l r'."""
    if left.shape[1] == 1:  # a batch of one is slower
        return matmul(left[:, 0].T, right[:, 0])[None]
    return left.permute(1, 2, 0) @ right.permute(1, 0, 2)


def add_products(total: Tensor, left: Tensor, right: Tensor, coefficient: float) -> None:
    """total += coefficient * products(left, right), for a flat total; no matrix is made."""
    p, q = left.shape[2], right.shape[2]
    if left.shape[1] == 1:
        whole = total.view(p, q)
        torch.addmm(whole, left[:, 0].T, right[:, 0], alpha=coefficient, out=whole)
    else:
        whole, lefts, rights = total.view(-1, p, q), left.permute(1, 2, 0), right.permute(1, 0, 2)
        torch.baddbmm(whole, lefts, rights, alpha=coefficient, out=whole)


def project_rows(rows: Rows, basis: Factors, *, ones: bool = False) -> Rows:
    """Rows in an orthonormal basis; `ones`: with a 1 appended to dense rows."""
    if isinstance(rows, Tensor) and ones and (basis.is_diagonal or rows.shape[1] > 1):
        rows, ones = with_ones(rows), False
    if basis.is_diagonal:
        return rows
    if isinstance(rows, OneHot):
        padded = torch.cat([basis.entries[0], basis.entries.new_zeros(1, basis.size)])
        return padded[rows.index][:, None]
    if ones:
        Q = basis.entries[0]
        return matmul(rows[:, 0], Q[:-1]).add_(Q[-1])[:, None]
    if rows.shape[1] == 1:
        return matmul(rows[:, 0], basis.entries[0])[:, None]
    return (rows.transpose(0, 1) @ basis.entries).transpose(0, 1)


def arranged(map_: ExampleMap, rows: Rows) -> Rows:
    """Rows (examples, T, groups, d), or one-hot rows with an index (examples, T)."""
    if isinstance(rows, OneHot):
        return OneHot(map_.arrange(rows.index + 1) - 1, rows.size)
    return map_.arrange(rows)


def gradients(left: Rows, right: Rows, part: slice) -> Tensor:
    """(examples, groups, p, q): the sum over rows of l r' for some of the examples."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape[3] > right.shape[3]:  # a wide result takes less time than a tall one
            return gradients(right, left, part).mT
        return left[part].permute(0, 2, 3, 1) @ right[part].permute(0, 2, 1, 3)
    hot, other = (left, right) if isinstance(left, OneHot) else (right, left)
    assert isinstance(hot, OneHot) and isinstance(other, Tensor)
    rows = other[part][:, :, 0]
    index = (hot.index[part] % (hot.size + 1))[..., None].expand_as(rows)
    sums = rows.new_zeros(len(rows), hot.size + 1, rows.shape[2]).scatter_add_(1, index, rows)
    sums = sums[:, : hot.size]
    return (sums if isinstance(left, OneHot) else sums.mT)[:, None]


def summed_squares(pairs: Sequence[tuple[Rows, Rows]], entries: int) -> Tensor:
    """(groups, p, q): the squares of the gradients of single examples, added up.

    Args:
        pairs: rows l and r of each use, arranged by examples.
        entries: of such a gradient.
    """
    examples = len(pairs[0][0].index if isinstance(pairs[0][0], OneHot) else pairs[0][0])
    step, total = max(1, _CHUNK // entries), None
    for i in range(0, examples, step):
        parts = [gradients(left, right, slice(i, i + step)) for left, right in pairs]
        gradient = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        squares = sum_of_squares(gradient)
        total = squares if total is None else total.add_(squares)
    assert total is not None
    return total


def sum_of_squares(rows: Tensor) -> Tensor:
    """Over the first dimension of rows that may be written to.

    The sum is taken in the order of the memory, and lies like a row: others take many times longer.
    """
    order = sorted(range(1, rows.ndim), key=lambda dim: -rows.stride(dim))
    dense = rows.permute(0, *order).square_().sum(0)
    return dense.permute([order.index(dim) for dim in range(1, rows.ndim)])


@dataclass(frozen=True)
class OneHotSums:
    """Sums of rows over those of an example that have the same index.

    Args:
        kept: the rows that have an index and an example.
        place: of each of these, the sum that it belongs to.
        index: of each sum.
        size: the number of indices.
    """

    kept: Tensor
    place: Tensor
    index: Tensor
    size: int

    @staticmethod
    def of(hot: OneHot, map_: ExampleMap) -> OneHotSums:
        """Which rows are added up."""
        owner = map_.owners(len(hot), hot.index.device)
        kept = (hot.index >= 0) & (owner >= 0)
        key, place = torch.unique(owner[kept] * hot.size + hot.index[kept], return_inverse=True)
        return OneHotSums(kept, place, key % hot.size, hot.size)

    def sums(self, rows: Tensor) -> Tensor:
        """Of rows (R, d): (sums, d)."""
        kept = rows[self.kept]
        return kept.new_zeros(len(self.index), kept.shape[1]).index_add_(0, self.place, kept)

    def by_index(self, sums: Tensor) -> Tensor:
        """The sums added up over examples: (indices, d)."""
        return sums.new_zeros(self.size, sums.shape[1]).index_add_(0, self.index, sums)


def mean_over_uses(rows: list[Rows], actives: list[Tensor]) -> tuple[list[Rows], list[Tensor]]:
    """The mean over uses, of the examples that are active in them."""
    active = torch.stack(actives)
    total = torch.stack([part for part in rows if isinstance(part, Tensor)])
    count = active.sum(0).clamp(min=1)[..., None]
    return [(total * active[..., None]).sum(0) / count], [active.any(0)]
