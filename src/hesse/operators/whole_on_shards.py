# SPDX-License-Identifier: Apache-2.0
"""A matrix that every process has whole, as an operator on vectors that are sharded over them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.structure import diagonal_of
from hesse.vectors.places import Places, Where
from hesse.vectors.rows import transposed
from hesse.vectors.space import Space


def on_shards(A: LinearOperator, space: Space) -> LinearOperator:
    """A symmetric operator on whole vectors as one on a space; itself if that is not sharded."""
    return A if space.shards is None else WholeOnShards(A, space)


class WholeOnShards(LinearOperator):
    """The part of A v in each process: v is gathered, and A v computed in all of them.

    One all-gather a product.

    Args:
        A: a symmetric operator, the same in all processes.
        space: of the vectors.
    """

    def __init__(self, A: LinearOperator, space: Space) -> None:
        super().__init__(space, symmetric=True)
        self.whole = A

    def _matvec(self, v: Tensor) -> Tensor:
        return self.domain.part(self.whole._matvec(self.domain.whole(v[None])[0]))

    def _matmat(self, block: Tensor) -> Tensor:
        whole = self.domain.whole(transposed(block)).T.contiguous()
        return self.domain.part(self.whole._matmat(whole))

    # -- What is known of A ------------------------------------------------------------------------

    @property
    def is_structured(self) -> bool:
        return self.whole.is_structured

    @property
    def is_diagonal(self) -> bool:
        return self.whole.is_diagonal

    def _inverse(self) -> LinearOperator | None:
        return self._of(self.whole._inverse())

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        return self._of(self.whole._function(f))

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        d = self.domain.whole(diagonal_of(D)[None])[0]
        return self._of(self.whole._plus_diagonal(DiagonalOperator(self.whole.domain, d)))

    def _diagonal(self) -> Tensor | None:
        d = self.whole._diagonal()
        return None if d is None else self.domain.part(d)

    def _eigenvalues(self) -> Tensor | None:
        return self.whole._eigenvalues()

    def _trace(self) -> float | None:
        return self.whole._trace()

    def _logdet(self) -> tuple[float, float] | None:
        return self.whole._logdet()

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        """Of any entries on whole vectors, without a message."""
        if isinstance(where, Places):
            return self.whole._principal(space, where.index)
        return super()._principal(space, where)

    def _of(self, whole: LinearOperator | None) -> LinearOperator | None:
        return None if whole is None else WholeOnShards(whole, self.domain)
