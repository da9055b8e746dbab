# SPDX-License-Identifier: Apache-2.0
"""Which parameters have a posterior distribution; the others stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.operators.algebra import LinearOperator
from hesse.operators.index_sets import entries
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Chosen:
    """Entries S of the flat vector of params, in ascending order."""

    params: Tree
    """The point; leaves without a chosen entry are frozen, which makes products cheaper."""
    whole: Space
    index: Tensor
    """S, shape (s,)."""

    @staticmethod
    def of(params: Tree, where: Any) -> Chosen:
        """Those of names or patterns, or of an index as `A.restrict` takes it; None: all."""
        space = Space.of(params, what="params")
        if where is None:
            index = torch.arange(space.n, device=space.device)
        elif names := _patterns(where):
            index = torch.cat([_indices(space, name) for name in names]).unique()
        else:
            index = entries(space, where).sort().values
        return Chosen(_frozen(space, params, index), space, index)

    @property
    def space(self) -> Space:
        """Of vectors (s,); that of params where all entries are chosen."""
        if self.is_all:
            return self.whole
        return Space.flat(len(self.index), self.whole.dtype, self.whole.device)

    @property
    def is_all(self) -> bool:
        """Whether no parameter stays as it is."""
        return len(self.index) == self.whole.n

    @property
    def theta(self) -> Tensor:
        """The chosen parameters, (s,)."""
        return self.take(self.whole.flatten(self.params).detach())

    @property
    def leaf_of(self) -> Tensor:
        """The number of the leaf that each chosen entry is in."""
        sizes = torch.tensor(self.whole.sizes, device=self.index.device)
        return torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)[
            self.index
        ]

    def take(self, v: Tensor) -> Tensor:
        """The chosen entries of flat vectors (..., n)."""
        return v if self.is_all else v[..., self.index]

    def embed(self, x: Tensor) -> Tensor:
        """Flat vectors (..., n) that are zero elsewhere, of (..., s)."""
        if self.is_all:
            return x
        full = x.new_zeros(*x.shape[:-1], self.whole.n)
        full[..., self.index] = x
        return full

    def restrict(self, A: LinearOperator) -> LinearOperator:
        """The rows and columns S of an operator on all parameters."""
        return A if self.is_all else A.restrict(self.index)


def _patterns(where: Any) -> list[str]:
    """Names or patterns of leaves; empty where `where` is an index."""
    if isinstance(where, str):
        return [where]
    is_list = isinstance(where, Sequence) and not isinstance(where, Tensor)
    return list(where) if is_list and where and all(isinstance(w, str) for w in where) else []


def _indices(space: Space, name: str) -> Tensor:
    _, where = space.subspace(name)
    if isinstance(where, Tensor):
        return where
    return torch.arange(where.start, where.stop, device=space.device)


def _frozen(space: Space, params: Tree, index: Tensor) -> Tree:
    """A copy of params in which leaves without an entry in the index do not vary."""
    mask = torch.zeros(space.n, dtype=torch.bool, device=space.device)
    mask[index] = True
    leaves = space.leaves(space.copy(params), what="params")
    parts = [
        leaf if bool(inside.any()) else nn.Parameter(leaf.detach(), requires_grad=False)
        for leaf, inside in zip(leaves, mask.split(space.sizes), strict=True)
    ]
    return space.build(parts)
