# SPDX-License-Identifier: Apache-2.0
"""Block-diagonal operators: each block acts on its own slice of the vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, DeviceError, DtypeError, HesseError
from hesse.operators.algebra import LinearOperator
from hesse.operators.computed_diagonal import combined
from hesse.operators.dense import aslinearoperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.operators.structure import BlocksStructure, diagonal_of
from hesse.vectors.places import Where
from hesse.vectors.space import Space


class BlockDiagonalOperator(BlocksStructure, LinearOperator):
    """diag(A_1, ..., A_k) between two spaces whose flat vectors are those of the blocks, joined."""

    def __init__(self, blocks: list[LinearOperator], domain: Space, codomain: Space) -> None:
        super().__init__(domain, codomain, symmetric=all(A.symmetric for A in blocks))
        self.blocks = blocks
        self._columns = [A.shape[1] for A in blocks]
        self._rows = [A.shape[0] for A in blocks]

    def _matvec(self, v: Tensor) -> Tensor:
        parts = v.split(self._columns)
        return torch.cat([A._matvec(part) for A, part in zip(self.blocks, parts, strict=True)])

    def _rmatvec(self, u: Tensor) -> Tensor:
        parts = u.split(self._rows)
        return torch.cat([A._rmatvec(part) for A, part in zip(self.blocks, parts, strict=True)])

    def _matmat(self, block: Tensor) -> Tensor:
        parts = block.split(self._columns)
        return torch.cat([A._matmat(part) for A, part in zip(self.blocks, parts, strict=True)])

    def _rmatmat(self, block: Tensor) -> Tensor:
        parts = block.split(self._rows)
        return torch.cat([A._rmatmat(part) for A, part in zip(self.blocks, parts, strict=True)])

    def announce(self, products: int) -> None:
        for A in self.blocks:
            A.announce(products)

    def _principal(self, space: Space, where: Where) -> LinearOperator:
        """Of whole blocks it is block-diagonal too."""
        ends = [0, *accumulate(self._rows)]
        is_whole = isinstance(where, slice) and where.start in ends and where.stop in ends
        if self._rows != self._columns or not isinstance(where, slice) or not is_whole:
            return super()._principal(space, where)
        inside = self.blocks[ends.index(where.start) : ends.index(where.stop)]
        return BlockDiagonalOperator(inside, space, space)

    def _joined(self, blocks: list[LinearOperator] | None) -> LinearOperator | None:
        """The operator of other blocks in their places."""
        return None if blocks is None else BlockDiagonalOperator(blocks, self.codomain, self.domain)

    def _inverse(self) -> LinearOperator | None:
        return self._joined(self._of_all(lambda A: A._inverse()))

    def _diagonal(self) -> Tensor | None:
        parts = self._of_all(lambda A: A._diagonal())
        return None if parts is None else torch.cat(parts)

    def _computed_diagonal(self) -> Any:
        return (
            combined(self.blocks, lambda *parts: torch.cat(parts)) if self.is_structured else None
        )

    def _function(self, f: Callable[[Tensor], Tensor]) -> LinearOperator | None:
        return self._joined(self._of_all(lambda A: A._function(f)))

    def _eigen(self) -> tuple[LinearOperator, Tensor] | None:
        parts = self._of_all(lambda A: A._eigen())
        if parts is None:
            return None
        Q, w = zip(*parts, strict=True)
        return BlockDiagonalOperator(list(Q), self.domain, self.codomain), torch.cat(w)

    def _squared_entries(self) -> LinearOperator | None:
        squared = self._of_all(lambda A: A._squared_entries())
        return (
            None if squared is None else BlockDiagonalOperator(squared, self.domain, self.codomain)
        )

    def _plus_diagonal(self, D: LinearOperator) -> LinearOperator | None:
        if self._rows != self._columns:
            return None
        space = self.domain.common(D.domain)
        parts = diagonal_of(D).split(self._rows)
        sums = [
            A + DiagonalOperator(A.domain, part) for A, part in zip(self.blocks, parts, strict=True)
        ]
        return BlockDiagonalOperator(sums, space, space)

    @property
    def is_structured(self) -> bool:
        return self._rows == self._columns

    @property
    def is_diagonal(self) -> bool:
        return all(A.is_diagonal for A in self.blocks)


@public("hesse.block_diagonal_operator(ops)", nested=False)
def block_diagonal_operator(
    ops: Sequence[LinearOperator | Tensor] | Mapping[str, LinearOperator | Tensor],
) -> BlockDiagonalOperator:
    r"""The operator with these blocks on its diagonal and zeros elsewhere.

    $$ A = \operatorname{diag}(A_1, \dots, A_k), \qquad
       A (v_1, \dots, v_k) = (A_1 v_1, \dots, A_k v_k) $$

    Args:
        ops: the blocks, operators or matrices. A list makes an operator on flat vectors; a dict
            one on trees with these names, each holding a tree of its block.

    The inverse is that of the blocks if all have one; so it is with a diagonal added.

    Cost: one product with each block.

    Raises:
        HesseError: no blocks, or blocks of different dtypes or devices.

    >>> A = block_diagonal_operator([torch.tensor([[2.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])])
    >>> A @ torch.tensor([1.0, 2.0, 3.0])
    tensor([2., 3., 2.])
    >>> B = block_diagonal_operator({"w": 3 * torch.eye(2), "b": torch.tensor([[5.0]])})
    >>> B @ {"w": torch.ones(2), "b": torch.ones(1)}
    {'w': tensor([3., 3.]), 'b': tensor([5.])}
    """
    named = isinstance(ops, Mapping)
    names = list(ops) if named else None
    blocks = [aslinearoperator(op) for op in (ops.values() if isinstance(ops, Mapping) else ops)]
    _check_blocks(blocks)
    domain = _joined_space([A.domain for A in blocks], names)
    codomain = _joined_space([A.codomain for A in blocks], names)
    return BlockDiagonalOperator(blocks, domain, codomain)


def _joined_space(spaces: list[Space], names: list[str] | None) -> Space:
    """The space of a flat vector, or of a dict with one entry for each of the spaces."""
    dtype, device = spaces[0].dtype, spaces[0].device
    if names is None:
        return Space.flat(sum(space.n for space in spaces), dtype, device)
    return Space(
        template={name: space.template for name, space in zip(names, spaces, strict=True)},
        names=tuple(
            f"{name}.{leaf}" if leaf else name
            for name, space in zip(names, spaces, strict=True)
            for leaf in space.names
        ),
        shapes=tuple(shape for space in spaces for shape in space.shapes),
        dtypes=tuple(leaf_dtype for space in spaces for leaf_dtype in space.dtypes),
        dtype=dtype,
        device=device,
    )


def _check_blocks(blocks: list[LinearOperator]) -> None:
    if not blocks:
        raise ArgumentError(
            expected="ops with at least one block",
            got="none",
            remedy="Give operators or matrices.",
        )
    _check_same([A.dtype for A in blocks], DtypeError, "dtype", "Convert their tensors.")
    _check_same([A.device for A in blocks], DeviceError, "device", "Move their tensors.")


def _check_same(values: Sequence[object], error: type[HesseError], what: str, remedy: str) -> None:
    if any(value != values[0] for value in values):
        raise error(
            expected=f"blocks of one {what}",
            got=", ".join(sorted({str(value) for value in values})),
            remedy=remedy,
        )
