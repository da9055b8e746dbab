# SPDX-License-Identifier: Apache-2.0
"""The entries of a symmetric matrix from its products with the seeds of a colouring.

A seed is the sum of the unit vectors of one colour. In the product with it, entry i is the sum of
the entries (i, j) over all j of that colour. At distance 2 and in stars an entry (i, j) is alone in
row i of the product of the colour of j, or in row j of that of i: it is read there. In an acyclic
colouring the sums are the equations of a triangular system.

Both entries (i, j) and (j, i) have one origin: the matrix is symmetric to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import splu
from torch import Tensor

from hesse.operators.sparse.colouring import Colouring, Method, colour


@dataclass(frozen=True)
class Compression:
    """A symmetric pattern and a colouring of it, which is made when it is first asked for.

    Args:
        pattern: a `scipy.sparse.csr_array` of bool with sorted indices.
        method: of the colouring, see `colour`.

    >>> A = sp.csr_array(np.array([[1.0, 2.0, 0.0], [2.0, 3.0, 4.0], [0.0, 4.0, 5.0]]))
    >>> packed = Compression(A.astype(bool), "acyclic")
    >>> products = packed.seeds(torch.float64) @ torch.tensor(A.toarray())
    >>> packed.entries(products)
    tensor([1., 2., 2., 3., 4., 4., 5.], dtype=torch.float64)
    """

    pattern: Any
    method: Method = "auto"

    @cached_property
    def colouring(self) -> Colouring:
        """The colour of every variable; a microsecond an entry in Python, or two."""
        return colour(self.pattern, self.method)

    @property
    def fewest(self) -> int:
        """A bound from below on the number of colours.

        A product has n numbers, and together they determine every entry on one side.
        """
        n = self.pattern.shape[0]
        on_one_side = (self.pattern.nnz + int(self.pattern.diagonal().sum())) / 2
        return math.ceil(on_one_side / n) if n else 0

    def seeds(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
        """One seed a row, shape (colours, n)."""
        n = self.pattern.shape[0]
        colours = torch.from_numpy(self.colouring.colours)
        seeds = torch.zeros(self.colouring.count, n, dtype=dtype)
        seeds[colours, torch.arange(n)] = 1.0
        return seeds.to(device)

    def entries(self, products: Tensor) -> Tensor:
        """The entries in the order of the pattern, from the products with the seeds, as rows.

        Cost: one gather; for an acyclic colouring also the solution of a triangular system, on the
        CPU and in float64.
        """
        flat = products.reshape(-1)
        if self.colouring.method != "acyclic":
            return flat.index_select(0, self._direct.to(flat.device))
        read, factor, pairs = self._substitution
        sums = flat.index_select(0, read.to(flat.device)).double().cpu().numpy()
        return torch.from_numpy(factor.solve(sums)[pairs]).to(flat)

    @cached_property
    def _ends(self) -> tuple[Any, Any]:
        """The smaller and the larger index of every entry."""
        rows = np.repeat(np.arange(self.pattern.shape[0]), np.diff(self.pattern.indptr))
        columns = self.pattern.indices.astype(np.int64)
        return np.minimum(rows, columns), np.maximum(rows, columns)

    def _place(self, row: Any, column: Any) -> Any:
        """Where among the products the sum of a row over the colour of a column stands."""
        return self.colouring.colours[column] * self.pattern.shape[0] + row

    @cached_property
    def _direct(self) -> Tensor:
        """Where every entry is alone."""
        low, high = self._ends
        own, mirrored = self._place(low, high), self._place(high, low)
        upper = low < high  # each entry beside the diagonal comes twice
        size = self.colouring.count * self.pattern.shape[0]
        counts = np.bincount(np.concatenate([own[upper], mirrored[upper]]), minlength=size)
        places = np.where(counts[own] <= 2, own, mirrored)
        # Half of the memory: a gather waits for its indices as long as for what it gathers.
        return torch.from_numpy(places.astype(np.int32) if size < 2**31 else places)

    @cached_property
    def _substitution(self) -> tuple[Tensor, Any, Any]:
        """Which sums are read, the factor of their matrix, and which unknown each entry is."""
        low, high = self._ends
        n = self.pattern.shape[0]
        keys, pairs = np.unique(low * n + high, return_inverse=True)
        first, second = np.divmod(keys, n)
        order, rows = _elimination_order(first, second, self.colouring.colours)
        others = np.where(first[order] == rows, second[order], first[order])
        system = _triangular(first, second, order, rows, others, self._place)
        factor = splu(system, permc_spec="NATURAL", diag_pivot_thresh=0.0, options={"Equil": False})
        position = np.empty(len(order), dtype=np.int64)
        position[order] = np.arange(len(order))
        return torch.from_numpy(self._place(rows, others)), factor, position[pairs]


def _elimination_order(first: Any, second: Any, colours: Any) -> tuple[Any, Any]:
    """The unknowns in an order in which each follows from those before it, and its row.

    Args:
        first, second: the two indices of each unknown, an entry of the upper triangle.
        colours: of an acyclic colouring.
    """
    ends = list(zip(first.tolist(), second.tolist(), strict=True))
    colour = colours.tolist()
    open_sums: dict[tuple[int, int], set[int]] = {}
    for unknown, (i, j) in enumerate(ends):
        open_sums.setdefault((i, colour[j]), set()).add(unknown)
        open_sums.setdefault((j, colour[i]), set()).add(unknown)
    ready = [key for key, unknowns in open_sums.items() if len(unknowns) == 1]
    order, rows = [], []
    while ready:
        row, shade = ready.pop()
        if len(open_sums[row, shade]) != 1:
            continue
        unknown = open_sums[row, shade].pop()
        order.append(unknown)
        rows.append(row)
        i, j = ends[unknown]
        other = j if i == row else i
        if other != row:
            rest = open_sums[other, colour[row]]
            rest.discard(unknown)
            if len(rest) == 1:
                ready.append((other, colour[row]))
    assert len(order) == len(ends), "a cycle of two colours"
    return np.array(order, dtype=np.int64), np.array(rows, dtype=np.int64)


def _triangular(first: Any, second: Any, order: Any, rows: Any, others: Any, place: Any) -> Any:
    """The matrix of the sums that are read, in the order of elimination: unit lower triangular."""
    count = len(order)
    position = np.empty(count, dtype=np.int64)
    position[order] = np.arange(count)
    beside = first != second
    sums = np.concatenate([place(first, second), place(second[beside], first[beside])])
    unknowns = np.concatenate([position, position[beside]])
    read = place(rows, others)
    by_sum = np.argsort(read)
    where = np.searchsorted(read, sums, sorter=by_sum)
    equation = by_sum[np.minimum(where, count - 1)]
    used = read[equation] == sums
    ones = np.ones(int(used.sum()))
    return sp.csc_array((ones, (equation[used], unknowns[used])), shape=(count, count))
