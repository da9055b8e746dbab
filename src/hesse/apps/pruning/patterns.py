# SPDX-License-Identifier: Apache-2.0
"""Which weights are removed, given a score for each: single entries, n:m, rows or blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.vectors.space import Space

_BLOCKS = "1x4"  # what pattern="blocks" stands for


@dataclass(frozen=True)
class Pattern:
    """The sets of weights that are removed together, or of which some are.

    Args:
        prunable: the entries of the flat vector that may be removed, ascending, (p,).
        group: the group of each of them, numbered from 0, (p,).
        leaf: the leaf of each of them, numbered from 0, (p,).
        kept_of: of "n:m" the n entries that each group keeps; None where a group goes as a whole.
        by_leaf: whether every leaf gets the same sparsity, not all of them together.
    """

    prunable: Tensor
    group: Tensor
    leaf: Tensor
    kept_of: tuple[int, int] | None = None
    by_leaf: bool = False

    @staticmethod
    def of(
        space: Space, pattern: str, where: str | Sequence[str] | None, by_leaf: bool = False
    ) -> Pattern:
        """The pattern on the leaves that `where` names; by default on those of two dimensions."""
        grouping = _grouping(pattern)
        starts = [0, *torch.tensor(space.sizes).cumsum(0).tolist()]
        entries, groups, leaves, count = [], [], [], 0
        for number, k in enumerate(_chosen(space, where)):
            ids = grouping.ids(space.shapes[k]).to(space.device)
            entries.append(torch.arange(starts[k], starts[k + 1], device=space.device))
            groups.append(ids + count)
            leaves.append(torch.full_like(ids, number))
            count += int(ids.max()) + 1
        return Pattern(
            *(torch.cat(entries), torch.cat(groups), torch.cat(leaves)),
            *(grouping.kept_of, by_leaf),
        )

    @property
    def number(self) -> int:
        """How many entries may be removed."""
        return len(self.prunable)

    @property
    def is_single(self) -> bool:
        """Whether entries are removed one by one."""
        return self.kept_of is not None or len(self.sizes) == self.number

    @property
    def sizes(self) -> Tensor:
        """The number of entries in each group."""
        return torch.bincount(self.group)

    def removed(self, score: Tensor, sparsity: float) -> Tensor:
        """Which of the prunable entries go: those of the lowest scores. A mask (p,).

        Args:
            score: what the removal of each entry costs, (p,).
            sparsity: the share that goes. Of "n:m" its share of that of the pattern.
        """
        if self.kept_of is not None:
            return self._within_groups(score, sparsity)
        if not self.by_leaf:
            return self._lowest(score, sparsity)
        gone = torch.zeros_like(self.group, dtype=torch.bool)
        for number in range(int(self.leaf.max()) + 1):
            here = self.leaf == number
            gone[here] = self._only(here)._lowest(score[here], sparsity)
        return gone

    def _only(self, here: Tensor) -> Pattern:
        """The pattern on some of the prunable entries."""
        group = self.group[here].unique(return_inverse=True)[1]
        return Pattern(self.prunable[here], group, self.leaf[here])

    def _lowest(self, score: Tensor, sparsity: float) -> Tensor:
        """Whole groups, by their score for each entry, as long as they fit."""
        sizes = self.sizes
        total = torch.zeros(len(sizes), dtype=score.dtype, device=score.device)
        mean = total.index_add(0, self.group, score) / sizes
        order = mean.argsort(stable=True)
        fits = sizes[order].cumsum(0) <= round(sparsity * self.number)
        gone = torch.zeros_like(sizes, dtype=torch.bool)
        gone[order] = fits
        return gone[self.group]

    def _within_groups(self, score: Tensor, sparsity: float) -> Tensor:
        """The lowest m - n entries of each group of m, or their share on the way to that."""
        assert self.kept_of is not None
        n, m = self.kept_of
        kept = m - round(sparsity * m)
        assert kept >= n
        return self._rank_from_top(score) >= kept

    def _rank_from_top(self, score: Tensor) -> Tensor:
        """The rank of each entry in its group: 0 for the highest score."""
        order = score.argsort(descending=True, stable=True)
        order = order[self.group[order].argsort(stable=True)]
        sizes = self.sizes
        starts = sizes.cumsum(0) - sizes
        places = torch.arange(len(order), device=order.device) - starts[self.group[order]]
        return torch.empty_like(order).index_put((order,), places)


@dataclass(frozen=True)
class _Grouping:
    """How the entries of a matrix (rows, columns) are grouped: tiles of `height` x `width`."""

    height: int
    width: int
    kept_of: tuple[int, int] | None = None

    def ids(self, shape: torch.Size) -> Tensor:
        """The group of each entry of a leaf, whose dimensions after the first are one."""
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // max(rows, 1)
        width = columns if self.width == 0 else self.width
        i = torch.arange(rows)[:, None] // self.height
        j = torch.arange(columns)[None, :] // width
        return (i * -(-columns // width) + j).reshape(-1)


def sparsity_of(pattern: str, sparsity: float | None) -> float:
    """The share of weights to remove, which "n:m" knows by itself."""
    kept_of = _grouping(pattern).kept_of
    if kept_of is None:
        if isinstance(sparsity, float) and 0.0 < sparsity < 1.0:
            return sparsity
        raise ArgumentError(
            expected="sparsity, the share of weights that become zero, between 0 and 1",
            got=repr(sparsity),
            remedy="Give 0.9 to keep a tenth of the weights; None only with a pattern like '2:4'.",
        )
    own = 1.0 - kept_of[0] / kept_of[1]
    if sparsity is not None and sparsity != own:
        raise ArgumentError(
            expected=f"the sparsity of pattern={pattern!r}, {own:g}",
            got=repr(sparsity),
            remedy="Give sparsity=None, or a pattern of this sparsity.",
        )
    return own


def _grouping(pattern: str) -> _Grouping:
    """What the text says."""
    text = _BLOCKS if pattern == "blocks" else pattern
    if text == "entries":
        return _Grouping(1, 1)
    if text == "rows":
        return _Grouping(1, 0)
    found = re.fullmatch(r"(\d+)([:x])(\d+)", text) if isinstance(text, str) else None
    a, b = (int(found[1]), int(found[3])) if found else (0, 0)
    if found and found[2] == "x" and a > 0 and b > 0:
        return _Grouping(a, b)
    if found and found[2] == ":" and 0 < a < b:
        return _Grouping(1, b, kept_of=(a, b))
    raise ArgumentError(
        expected="pattern to be 'entries', 'rows', 'blocks', a block such as '4x4', or n of m "
        "weights to keep, such as '2:4'",
        got=repr(pattern),
        remedy="Leave it out for single entries.",
    )


def _chosen(space: Space, where: str | Sequence[str] | None) -> list[int]:
    """The numbers of the leaves that may be pruned."""
    if where is None:
        chosen = [k for k, shape in enumerate(space.shapes) if len(shape) > 1]
    else:
        names = [where] if isinstance(where, str) else list(where)
        found = {name for each in names for name in space.subspace(each)[0].names}
        chosen = [k for k, name in enumerate(space.names) if name in found]
    if not chosen:
        raise ArgumentError(
            expected="parameters of two or more dimensions, which are pruned by default",
            got=space.describe(),
            remedy="Name those to prune: where='weight', or where=['*'] for all.",
        )
    return chosen
