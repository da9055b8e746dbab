# SPDX-License-Identifier: Apache-2.0
r"""Vectors u at the outputs z of a batch whose examples are taken apart.

$$ \operatorname{diag}(J^T B J) = \sum_u w_u \sum_n (J_n^T u_n)^2, \qquad
   \sum_u w_u\, u_n u_n^T = B_n $$

for B with a block B_n for every example n, of which a vector has a column for all examples at once.

| B | vectors |
|---|---|
| omega F of likelihoods | the columns of its root, one for each output of an example, at most |
| slopes r r' of rows | the slopes of one row of every example |
| slopes r r' of examples | one, the slopes themselves; for draws, one for each |
| the Hessian of any loss | the columns of its roots; w = -1 for those of negative eigenvalues |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice

import torch
from torch import Tensor

from hesse.ad.examples import Axis, Examples
from hesse.ad.fisher import Blocks, columns
from hesse.ad.jacobian import random_like
from hesse.ad.likelihoods.likelihood import Likelihood
from hesse.ad.likelihoods.seen import SeenLikelihoods
from hesse.ad.loss import LossHessian
from hesse.curvature.kronecker.roots import (
    LikelihoodRoots,
    hessian_blocks,
    spread_blocks,
    spread_entries,
)
from hesse.engine.closeness import agree
from hesse.vectors.random import random_signs

_ENTRIES = 1 << 20  # of columns of roots at a time

Weighted = tuple[float, list[Tensor]]
"""w and u."""

Block = tuple[list[float], list[Tensor]]
"""Several w, and their u in the first dimension of every tensor."""


class Vectors(ABC):
    """The vectors of a batch.

    Args:
        z: the outputs, with their graph.
        axes: where the examples are in each.
        examples: how many there are.
    """

    def __init__(self, z: Sequence[Tensor], axes: Sequence[Axis], examples: int) -> None:
        self.z, self.axes, self.examples = list(z), list(axes), examples

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are."""

    @abstractmethod
    def all(self) -> Iterator[Weighted]:
        """(w, u), whose sum is B."""

    @abstractmethod
    def random(self, generator: torch.Generator) -> Iterator[Weighted]:
        """(w, u) of random signs, the expectation of whose sum is B."""

    def blocks(self, size: int) -> Iterator[Block]:
        """All, so many at a time."""
        yield from in_blocks(self.all(), size)

    def of_example(self, u: Sequence[Tensor], n: int) -> list[Tensor]:
        """The entries of one example."""
        pairs = zip(u, self.axes, strict=True)
        return [axis.split(part, self.examples).select(axis.dim - 1, n) for part, axis in pairs]

    def scaled(self, u: Sequence[Tensor], numbers: Tensor) -> list[Tensor]:
        """u with the entries of each example times its number."""
        column = numbers[:, None]
        return [
            part * spread_entries(axis, column.to(part), part)
            for part, axis in zip(u, self.axes, strict=True)
        ]

    def _like_z(self, u: Sequence[Tensor]) -> list[Tensor]:
        return [part.to(z.dtype) for part, z in zip(u, self.z, strict=True)]


class RootVectors(Vectors):
    """B = omega F of likelihoods."""

    def __init__(self, loss: SeenLikelihoods, axes: Sequence[Axis], examples: int) -> None:
        self._roots = LikelihoodRoots(loss, axes)
        super().__init__(self._roots.z, self._roots.axes, examples)

    @property
    def count(self) -> int:
        return sum(map(len, self._units))

    @cached_property
    def _units(self) -> list[Tensor]:
        return self._roots.units(self.examples)

    def all(self) -> Iterator[Weighted]:
        for us in self._columns():
            for j in range(len(us[0])):
                yield 1.0, [part[j] for part in us]

    def blocks(self, size: int) -> Iterator[Block]:
        for us in self._columns():
            for parts in zip(*(part.split(size) for part in us), strict=True):
                yield [1.0] * len(parts[0]), list(parts)

    def _columns(self) -> Iterator[list[Tensor]]:
        """The columns of the roots, several at a time in the first dimension."""
        sizes = self._roots.per_example(self.examples)
        step = max(1, _ENTRIES // sum(z.numel() for z in self.z))
        for k, (size, units) in enumerate(zip(sizes, self._units, strict=True)):
            for some in units.split(step):
                e = [z.new_zeros(len(some), *z.shape) for z in self.z]
                numbers = e[k].new_zeros(len(some), size)
                numbers[torch.arange(len(some)), some] = 1.0
                numbers = numbers[:, None].expand(-1, self.examples, -1)
                e[k] = spread_blocks(self.axes[k], numbers, self.z[k])
                yield self._like_z(self._roots.columns(e))

    def random(self, generator: torch.Generator) -> Iterator[Weighted]:
        yield 1.0, self._like_z(self._roots.root([_signs(z, generator) for z in self.z]))


class SlopeVectors(Vectors):
    """B = mean over draws of r r', of rows or of examples."""

    def __init__(
        self,
        loss: SeenLikelihoods,
        blocks: Blocks,
        uniform: Sequence[Tensor],
        axes: Sequence[Axis],
        examples: Examples | None,
        number: int,
    ) -> None:
        roots = LikelihoodRoots(loss, axes)
        super().__init__(roots.z, roots.axes, number)
        self._likelihoods, self._per_example = loss.likelihoods, examples is not None
        self._slopes = columns(loss, blocks, uniform)
        rows = [each.row_inner(each.parameters, each.parameters) for each in loss.likelihoods]
        self._rows = [torch.zeros_like(part) for part in rows]
        self._row_axes = [
            Axis(axis.dim + each.z.ndim - part.ndim, outer=axis.outer)
            for axis, each, part in zip(axes, loss.likelihoods, rows, strict=True)
        ]
        self._draws = len(self._slopes[0][0])
        # The slopes of an example over the root of the weight that it has in the mean.
        self._scales = [torch.ones_like(part) for part in rows]
        if blocks == "gradients" and examples is not None:
            weights = examples.weights_of_rows(loss.likelihoods)
            self._scales = [torch.where(w > 0, w, torch.ones_like(w)).rsqrt() for w in weights]

    @property
    def count(self) -> int:
        return self._draws * (1 if self._per_example else sum(self._sizes))

    @cached_property
    def _sizes(self) -> list[int]:
        """How many rows an example has in each likelihood."""
        return [part.numel() // self.examples for part in self._rows]

    def all(self) -> Iterator[Weighted]:
        for j in range(self._draws):
            for numbers in self._selections():
                yield 1.0 / self._draws, self._multiples(j, numbers)

    def _selections(self) -> Iterator[list[Tensor]]:
        """Ones for the rows of a vector, in the shape of the rows; zeros for the others."""
        if self._per_example:
            yield self._scales
            return
        for k, size in enumerate(self._sizes):
            for t in range(size):
                numbers = [part.new_zeros(self.examples, s) for part, s in self._sized()]
                numbers[k][:, t] = 1.0
                yield self._spread(numbers)

    def random(self, generator: torch.Generator) -> Iterator[Weighted]:
        total: list[Tensor] = []
        for j in range(self._draws):
            parts = self._multiples(j, self._random_signs(generator))
            total = [a + b for a, b in zip(total, parts, strict=True)] if total else parts
        yield 1.0 / self._draws, total

    def _random_signs(self, generator: torch.Generator) -> list[Tensor]:
        if not self._per_example:
            return [_signs(part, generator) for part in self._rows]
        signs = _signs(self._rows[0].new_zeros(self.examples, 1), generator)
        parts = self._spread([signs for _ in self._rows])
        return [sign * scale for sign, scale in zip(parts, self._scales, strict=True)]

    def _sized(self) -> list[tuple[Tensor, int]]:
        return list(zip(self._rows, self._sizes, strict=True))

    def _spread(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        trios = zip(self._row_axes, numbers, self._rows, strict=True)
        return [spread_entries(axis, part, rows) for axis, part, rows in trios]

    def _multiples(self, j: int, numbers: Sequence[Tensor]) -> list[Tensor]:
        """The slopes of one draw, times a number for every row."""
        parts: list[Tensor] = []
        trios: Iterator[tuple[Likelihood, list[Tensor], Tensor]] = zip(
            self._likelihoods, self._slopes, numbers, strict=True
        )
        for likelihood, slopes, own in trios:
            parts += likelihood.row_multiples([part[j] for part in slopes], own)
        return self._like_z(parts)


class HessianVectors(Vectors):
    """B = the Hessian of a loss in the outputs, whose first dimension counts the examples.

    Its blocks are built column by column, for all examples at once, and decomposed.
    """

    def __init__(self, loss: LossHessian, examples: int) -> None:
        super().__init__(loss.tensors, [Axis(-z.ndim) for z in loss.tensors], examples)
        self._loss = loss
        self._sizes = [z.numel() // examples for z in loss.tensors]

    @cached_property
    def _blocks(self) -> Tensor:
        return hessian_blocks(self._loss, self.examples)

    @cached_property
    def _roots(self) -> list[tuple[float, Tensor]]:
        """(w, S) with sum w S S' = H: those of the positive and of the negative eigenvalues."""
        values, vectors = torch.linalg.eigh(self._blocks)
        least = 10 * torch.finfo(values.dtype).eps * values.abs().amax(-1, keepdim=True)
        pairs = [(1.0, values.clamp(min=0.0)), (-1.0, (-values).clamp(min=0.0))]
        return [
            (sign, vectors * size.sqrt()[:, None, :])
            for sign, part in pairs
            if bool((size := torch.where(part > least, part, 0.0)).any())
        ]

    def is_right(self) -> bool:
        """Whether H has such blocks: the examples do not influence one another in the loss."""
        e = random_like(self.z)
        ours = torch.einsum("nij,nj->ni", self._blocks, self._joined(e))
        theirs = self._joined(self._loss.product(e))
        return agree([ours], [theirs], 0.0)

    @property
    def count(self) -> int:
        return sum(int(S.any(0).any(0).sum()) for _, S in self._roots)

    def all(self) -> Iterator[Weighted]:
        for sign, S in self._roots:
            for column in S.unbind(2):
                if bool(column.any()):
                    yield sign, self._split(column)

    def random(self, generator: torch.Generator) -> Iterator[Weighted]:
        for sign, S in self._roots:
            e = _signs(S[:, 0], generator)
            yield sign, self._split(torch.einsum("nij,nj->ni", S, e))

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(self.examples, -1) for part in parts], dim=1)

    def _split(self, column: Tensor) -> list[Tensor]:
        parts = column.split(self._sizes, dim=1)
        return self._like_z([part.reshape(z.shape) for part, z in zip(parts, self.z, strict=True)])


def in_blocks(vectors: Iterable[Weighted], size: int) -> Iterator[Block]:
    """Vectors, so many at a time."""
    rest = iter(vectors)
    while some := list(islice(rest, size)):
        weights, us = zip(*some, strict=True)
        yield list(weights), [torch.stack(parts) for parts in zip(*us, strict=True)]


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return random_signs(like.numel(), like.dtype, like.device, generator).view(like.shape)
