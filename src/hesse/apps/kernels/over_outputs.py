# SPDX-License-Identifier: Apache-2.0
"""Between vectors of outputs, with C entries for each example, and vectors of examples.

Where several processes have outputs of their own, they have those of their examples: nothing is
sent.
"""

from __future__ import annotations

from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.vectors.rank_rows import over_ranks
from hesse.vectors.space import Space


def space_of_examples(outputs: Space) -> Space:
    """Of vectors with an entry for each example, where a vector of outputs has one tensor."""
    here = Space.flat(len_of(outputs), outputs.dtype, outputs.device)
    if outputs.shards is None:
        return here
    assert outputs.ranks is not None
    return over_ranks(outputs.ranks, here, outputs.device)


def len_of(outputs: Space) -> int:
    """The number of examples of this process."""
    return outputs.shapes[0][0]


class Spread(LinearOperator):
    """I x z: each entry of a vector of examples, times z, as the outputs of that example.

    Args:
        examples: the space of vectors of examples.
        outputs: that of vectors of outputs.
        z: (C,).
    """

    def __init__(self, examples: Space, outputs: Space, z: Tensor) -> None:
        super().__init__(examples, outputs)
        self._z = z

    def _matvec(self, v: Tensor) -> Tensor:
        return (v[:, None] * self._z).reshape(-1)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return u.view(self.domain.size, len(self._z)) @ self._z

    def _matmat(self, block: Tensor) -> Tensor:
        rows = block[:, None, :] * self._z[:, None]
        return rows.reshape(self.codomain.size, block.shape[1])

    def _rmatmat(self, block: Tensor) -> Tensor:
        parts = block.reshape(self.domain.size, len(self._z), block.shape[1])
        return (parts * self._z[:, None]).sum(1)


class ForEachOutput(LinearOperator):
    """M x I: a symmetric matrix of examples for each of the outputs.

    Args:
        M: of vectors of examples.
        outputs: the space of vectors of outputs.
    """

    def __init__(self, M: LinearOperator, outputs: Space) -> None:
        super().__init__(outputs, symmetric=True)
        self._M = M

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        outputs = self.codomain.n // self._M.domain.n  # of an example
        table = block.reshape(self._M.domain.size, outputs * block.shape[1])
        return self._M._matmat(table).reshape(block.shape)
