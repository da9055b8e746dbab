# SPDX-License-Identifier: Apache-2.0
"""What is computed from whole vectors: inner products, norms, decisions, random vectors.

If vectors were sharded over several processes, only these methods would communicate. They would
give the same result in each process, so that all processes take the same branch.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from hesse.ranks import Ranks
from hesse.vectors.checks import check_finite
from hesse.vectors.inner_products import dot, dots, norm
from hesse.vectors.random import normal_entries, random_signs


class WholeVectors:
    """The methods of `hesse.Space` that see all entries of a vector."""

    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device
    ranks: Ranks | None

    @cached_property
    def size(self) -> int:
        """Number of entries of a flat vector in this process: allocate with it."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def n(self) -> int:
        """Dimension of the space, over all processes that share its vectors: compute with it."""
        return self.size

    def empty(self) -> Tensor:
        """A flat vector of uninitialised memory."""
        return torch.empty(self.size, dtype=self.dtype, device=self.device)

    def zeros(self) -> Tensor:
        """The flat zero vector."""
        return torch.zeros(self.size, dtype=self.dtype, device=self.device)

    def gaussian(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent N(0, 1) entries.

        A generator on the CPU gives the same vector on every device.
        """
        return normal_entries(self.size, self.dtype, self.device, self._generator(generator))

    def rademacher(self, generator: torch.Generator | None = None) -> Tensor:
        """A flat vector of independent signs, +1 or -1 with probability 1/2 each.

        A generator on the CPU gives the same vector on every device.
        """
        return random_signs(self.size, self.dtype, self.device, self._generator(generator))

    def _generator(self, generator: torch.Generator | None) -> torch.Generator | None:
        """By default the one that all ranks have in common."""
        return self.ranks.generator if generator is None and self.ranks else generator

    def inner(self, u: Tensor, v: Tensor) -> float:
        """The inner product u'v of flat vectors, accumulated in float64.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).inner(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        11.0
        """
        return dot(u, v)

    def inner_pairs(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """The inner products u'v of several pairs (u, v) of flat vectors, in one reduction.

        >>> from hesse.vectors import Space
        >>> u, v = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> Space.flat(2).inner_pairs((u, u), (u, v))
        [5.0, 11.0]
        """
        return [dot(u, v) for u, v in pairs]

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
        return dots(basis, v)

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
        return norm(v)

    def column_norms(self, block: Tensor) -> Tensor:
        """The norms of the columns of a block (n, k): (k,), float64, on the CPU.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).column_norms(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
        tensor([5., 1.], dtype=torch.float64)
        """
        return torch.linalg.vector_norm(block, dim=0, dtype=torch.float64).cpu()

    def any(self, v: Tensor) -> bool:
        """Whether an entry of a vector, a block or a mask of its shape is not zero.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).any(torch.tensor([0.0, 2.0])), Space.flat(2).any(torch.zeros(2))
        (True, False)
        """
        return bool(v.any())

    def all_finite(self, v: Tensor) -> bool:
        """Whether a vector or block has neither NaN nor Inf. One sum tells, unless it overflows.

        >>> from hesse.vectors import Space
        >>> Space.flat(2).all_finite(torch.tensor([0.0, math.inf]))
        False
        """
        return math.isfinite(float(v.sum())) or bool(torch.isfinite(v).all())

    def check_finite(self, v: Tensor, what: str = "v") -> Tensor:
        """A vector or block itself; raises NonFiniteError, which says `what`, for NaN or Inf."""
        check_finite(what, self.all_finite(v))
        return v
