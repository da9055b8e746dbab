# SPDX-License-Identifier: Apache-2.0
"""What is computed from whole vectors: inner products, norms, decisions, random vectors.

Where vectors are sharded over several processes, only these methods communicate: one all-reduce
each. They give the same result in each process, so that all processes take the same branch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from hesse.ranks import Ranks
from hesse.vectors.checks import check_finite, check_whole
from hesse.vectors.division import Division
from hesse.vectors.inner_products import dot, dots, largest, norm
from hesse.vectors.random import Draw, Stream, normal_entries, random_signs

_SMALL = 1e-200  # a sum of squares that has lost no digits to underflow is larger


class WholeVectors:
    """The methods of `hesse.Space` that see all entries of a vector."""

    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks | None
    shards: Division | None

    @cached_property
    def size(self) -> int:
        """Number of entries of a flat vector in this process: allocate with it."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def n(self) -> int:
        """Dimension of the space, over all processes that share its vectors: compute with it."""
        return self.size if self.shards is None else self.shards.n

    @property
    def max_size(self) -> int:
        """The largest `size` in any process: decide with it what all must decide alike."""
        return self.size if self.shards is None else self.shards.width

    @property
    def sharers(self) -> Ranks:
        """The processes that have the parts of one vector, if it is sharded."""
        assert self.ranks is not None
        assert self.shards is not None
        return self.shards.sharers(self.ranks)

    @property
    def holders(self) -> list[Ranks]:
        """The processes that have the same part of a vector as this one, along each dimension."""
        assert self.ranks is not None
        assert self.shards is not None
        return self.shards.holders(self.ranks)

    def empty(self) -> Tensor:
        """A flat vector of uninitialised memory."""
        return torch.empty(self.size, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        """The flat zero vector."""
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def gaussian(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent N(0, 1) entries.

        A generator on the CPU gives the same vector on every device. Sharded, each process has its
        part of one vector, which does not depend on how many there are.
        """
        return self._drawn(normal_entries, generator)

    def rademacher(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent signs, +1 or -1 with probability 1/2 each.

        As of `gaussian`, on every device and in every process.
        """
        return self._drawn(random_signs, generator)

    def _drawn(self, draw: Draw, generator: torch.Generator | None) -> Tensor:
        if generator is None and self.ranks:  # the one that all ranks have in common
            generator = self.ranks.generator
        if self.shards is None:
            return draw(self.size, self.dtype, self.device, generator)
        stream = Stream(draw, self.n, self.dtype, self.device, generator)
        return self.shards.take(stream.entries)

    @property
    def positions(self) -> Tensor:
        """Where the entries of this process lie in a whole vector: (size,) of integers."""

        def between(start: int, stop: int) -> Tensor:
            return torch.arange(start, stop, device=self.device)

        return between(0, self.n) if self.shards is None else self.shards.take(between)

    def alternate(self, v: Tensor) -> Tensor:
        """A flat vector itself, after every second entry of the whole vector changed its sign.

        >>> from hesse.vectors import Space
        >>> Space.flat(3).alternate(torch.ones(3))
        tensor([ 1., -1.,  1.])
        """
        if self.shards is None:
            v[1::2].neg_()
            return v
        return v.mul_(1 - 2 * (self.positions % 2))

    def units(self, first: int, count: int) -> Tensor:
        """The unit vectors `first`, `first` + 1, ... as rows (count, size)."""
        if self.shards is not None:
            numbers = torch.arange(first, first + count, device=self.device)
            return (numbers[:, None] == self.positions).to(self.dtype)
        units = self.zeros().repeat(count, 1)
        units[:, first:].diagonal().fill_(1.0)
        return units

    def whole(self, rows: Tensor) -> Tensor:
        """All entries (k, n) of vectors that are rows (k, size), on every process."""
        if self.shards is None:
            return rows
        table = self.sharers.gather_rows(self.shards.pack(rows))
        return self.shards.assemble(table, len(rows))

    def part(self, whole: Tensor) -> Tensor:
        """The entries of this process (size,) of a whole vector (n,), or the rows of a block."""
        if self.shards is None:
            return whole
        return self.shards.take(lambda start, stop: whole[start:stop])

    def constant(self, v: Tensor) -> float | None:
        """The number that all entries of a flat vector are; None if they differ."""
        smallest, largest = self.extremes(v)
        return largest if smallest == largest else None

    def total(self, part: Tensor) -> Tensor:
        """The sum over the processes that share vectors of what each computed of its entries."""
        if self.shards is None:
            return part
        return self.sharers.total(part)

    def _gathered(self, *numbers: float) -> list[list[float]]:
        """These numbers of all processes that share vectors."""
        if self.shards is None:
            return [list(numbers)]
        return self.sharers.gather(*numbers)

    def qr(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Q (n, k) with orthonormal columns and an upper triangular R with Q R = columns.

        Of shards by the factors R of the parts of all processes, which together are factored again
        (Demmel, Grigori, Hoemmen & Langou 2012, doi:10.1137/080731992).
        """
        Q, R = torch.linalg.qr(columns)
        if self.shards is None:
            return Q, R
        k = columns.shape[1]
        square = torch.nn.functional.pad(R, (0, 0, 0, k - len(R)))
        squares = self.sharers.gather_rows(square.reshape(-1))
        together, R = torch.linalg.qr(squares.view(len(squares) * k, k))
        own = together[k * self.shards.rank :][: Q.shape[1]]
        return Q @ own, R

    def svd(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The left singular vectors (n, k) and the singular values (k,), descending."""
        if self.shards is None:
            U, values, _ = torch.linalg.svd(columns, full_matrices=False)
            return U, values
        Q, R = self.qr(columns)
        U, values, _ = torch.linalg.svd(R)
        return Q @ U, values

    def inner(self, u: Tensor, v: Tensor) -> float:
        """The inner product u'v of flat vectors, accumulated in float64.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
        """
        return self.inner_pairs((u, v))[0]

    def inner_pairs(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """The inner products u'v of several pairs (u, v) of flat vectors, in one reduction.

        >>> from hesse.vectors import Space
        >>> u, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> Space.flat(2).inner_pairs((u, u), (u, v))
        [5.0, 11.0]
        """
        here = [dot(u, v) for u, v in pairs]
        if self.shards is None:
            return here
        return self.total(torch.tensor(here, dtype=torch.float64)).tolist()

    def measure(
        self, pairs: Sequence[tuple[Tensor, Tensor]], vectors: Sequence[Tensor]
    ) -> tuple[list[float], list[float]]:
        """The inner products of pairs, and the norms of vectors, in one reduction.

        >>> from hesse.vectors import Space
        >>> u, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> Space.flat(2).measure([(u, v)], [v])
        ([11.0], [5.0])
        """
        here = [*(dot(u, v) for u, v in pairs), *map(norm, vectors)]
        parts = list(zip(*self._gathered(*here), strict=True))
        k = len(pairs)
        return [sum(part) for part in parts[:k]], [math.hypot(*part) for part in parts[k:]]

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        """The inner products of the rows of a basis with v or with its rows, in their dtype.

        Args:
            basis: shape (j, n).
            v: a flat vector (n,), or rows (k, n).

        Returns:
            Shape (j,) or (j, k), on the device of the vectors.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).inners(torch.eye(2), torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
        """
        here = dots(basis, v)
        return here if self.shards is None else self.total(here.double()).to(here.dtype)

    def inners_of(self, blocks: Sequence[Tensor], v: Tensor) -> list[Tensor]:
        """As `inners`, of several blocks of rows, in one reduction.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).inners_of([torch.eye(2)[:1], torch.eye(2)[1:]], torch.tensor([3.0, 4.0]))
        [tensor([3.]), tensor([4.])]
        """
        here = [dots(block, v) for block in blocks]
        if self.shards is None or not here:
            return here
        whole = self.total(torch.cat(here).double()).to(here[0].dtype)
        return list(whole.split([len(block) for block in blocks]))

    def project(self, basis: Tensor, v: Tensor) -> tuple[Tensor, float]:
        """The inner products of the rows of a basis with v, and the norm of v, in one reduction.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).project(torch.eye(2)[:1], torch.tensor([3.0, 4.0]))
        (tensor([3.]), 5.0)
        """
        here, length = dots(basis, v), norm(v)
        if self.shards is None:
            return here, length
        sums = self.total(torch.cat([here.double(), here.new_tensor([length**2]).double()]))
        square = float(sums[-1])
        is_usual = _SMALL < square < math.inf  # else it may have under- or overflown
        return sums[:-1].to(here.dtype), math.sqrt(square) if is_usual else self.norm(v)

    def gram(self, left: Tensor, right: Tensor) -> Tensor:
        """The inner products of all rows (j, n) with all rows (k, n): (j, k), float64, on the CPU.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).gram(torch.eye(2), torch.tensor([[3.0, 4.0]]))
        tensor([[3.],
                [4.]], dtype=torch.float64)
        """
        return self.inners(left, right).to("cpu", torch.float64)

    def norm(self, v: Tensor) -> float:
        """The Euclidean norm of a flat vector, accumulated in float64.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).norm(torch.tensor([3.0, 4.0]))
        5.0
        """
        return norm(v) if self.shards is None else self.norms(v)[0]

    def norms(self, *vectors: Tensor) -> list[float]:
        """The norms of several flat vectors, such as the rows of a basis, in one reduction.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).norms(*torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        [5.0, 1.0]
        """
        parts = self._gathered(*map(norm, vectors))
        return [math.hypot(*part) for part in zip(*parts, strict=True)]

    def column_norms(self, block: Tensor) -> Tensor:
        """The norms of the columns of a block (n, k): (k,), float64, on the CPU.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).column_norms(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
        tensor([5., 1.], dtype=torch.float64)
        """
        here = torch.linalg.vector_norm(block, dim=0, dtype=torch.float64).cpu()
        if self.shards is None:
            return here
        return torch.tensor(self._gathered(*here.tolist()), dtype=torch.float64).norm(dim=0)

    def extremes(self, v: Tensor) -> tuple[float, float]:
        """The smallest and the largest entry of a flat vector.

        >>> from hesse.vectors import Space
        >>> Space.flat(3).extremes(torch.tensor([2.0, -1.0, 0.0]))
        (-1.0, 2.0)
        """
        here = (float(v.min()), float(v.max())) if len(v) else (math.inf, -math.inf)
        smallest, largest = zip(*self._gathered(*here), strict=True)
        return min(smallest), max(largest)

    def largest(self, *vectors: Tensor) -> list[float]:
        """The largest entry in magnitude of several vectors or blocks, without a copy.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).largest(torch.tensor([1.0, -3.0]), torch.zeros(2))
        [3.0, 0.0]
        """
        return [max(part) for part in zip(*self._gathered(*map(largest, vectors)), strict=True)]

    def any(self, v: Tensor) -> bool:
        """Whether an entry of a vector, a block or a mask of its shape is not zero.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).any(torch.tensor([0.0, 2.0])), Space.flat(2).any(torch.zeros(2))
        (True, False)
        """
        here = bool(v.any())
        return here if self.shards is None else any(part for (part,) in self._gathered(here))

    def argmax(self, v: Tensor) -> tuple[int, float]:
        """Where the largest entry lies in the whole vector, the first of equal ones, and itself.

        >>> from hesse.vectors import Space
        >>> Space.flat(3).argmax(torch.tensor([1.0, 3.0, 3.0]))
        (1, 3.0)
        """
        here = -math.inf, math.inf
        if len(v):
            at = int(v.argmax())
            here = float(v[at]), at if self.shards is None else int(self.positions[at])
        entry, place = max(self._gathered(*here), key=lambda row: (row[0], -row[1]))
        return int(place), entry

    def row(self, block: Tensor, place: int) -> Tensor:
        """The row (k,) of a block (n, k) at a place in the whole vector."""
        if self.shards is None:
            return block[place]
        return self.total(block[self.positions == place].sum(dim=0))

    def count(self, mask: Tensor) -> int:
        """How many entries of a mask of the shape of a flat vector are true.

        >>> from hesse.vectors import Space
        >>> Space.flat(3).count(torch.tensor([True, False, True]))
        2
        """
        return sum(int(part) for (part,) in self._gathered(int(mask.sum())))

    def all_finite(self, v: Tensor) -> bool:
        """Whether a vector or block has neither NaN nor Inf. One sum tells, unless it overflows.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).all_finite(torch.tensor([0.0, math.inf]))
        False
        """
        here = math.isfinite(float(v.sum())) or bool(torch.isfinite(v).all())
        if self.shards is None:
            return here
        return not any(is_bad for (is_bad,) in self._gathered(not here))

    def check_whole(self, what: str, remedy: str) -> None:
        """Raise for sharded vectors, for which there is no `what`; `remedy` says what to do."""
        check_whole(self.shards, what, remedy)

    def check_finite(self, v: Tensor, what: str = "v") -> Tensor:
        """A vector or block itself; raises NonFiniteError, which says `what`, for NaN or Inf."""
        check_finite(what, self.all_finite(v))
        return v
