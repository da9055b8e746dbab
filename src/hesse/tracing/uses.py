# SPDX-License-Identifier: Apache-2.0
"""`Use`: how a parameter is used, as the last operation of its gradient tells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Rule = Literal[
    "mm", "bmm", "grouped mm", "convolution", "transposed convolution", "embedding",
    "sum", "channel sum", "batch norm", "group norm", "own gradient",
]  # fmt: skip

FACTORED: frozenset[Rule] = frozenset(
    ["mm", "bmm", "grouped mm", "convolution", "transposed convolution", "embedding"]
)


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a parameter: an operation that its gradient is the result of, or a part of.

    Args:
        rule: how rows are made of the operands (see `curvature.kronecker.rows`).
        operation: the name of the operation.
        g: the operand that depends on u.
        a: the operands that do not.
        shape: (groups, p, q) of the result of a factored rule; (D,) of another one.
        settings: the other arguments of the operation.
        g_is_left: whether l, not r, depends on u.
        is_swapped: whether the parameter is the transposed result; shape and g_is_left are those of
            the parameter.
        scale: a number that the result is multiplied with.
        multipliers: values, independent of u, that the result is multiplied with as well: entry by
            entry, or one number for all entries.
        order: for every entry of the parameter the entry of the result that it is, -1 for none;
            None if they are the same.
    """

    rule: Rule | None
    operation: str
    g: int
    a: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    settings: tuple = ()
    g_is_left: bool = True
    is_swapped: bool = False
    scale: float = 1.0
    multipliers: tuple[int, ...] = ()
    order: Tensor | None = None

    @property
    def is_factored(self) -> bool:
        """Whether the gradient is a sum of products of rows of two operands."""
        return self.rule in FACTORED

    def transposed(self) -> Use:
        """The use of the transposed matrix."""
        groups, p, q = self.shape
        return replace(
            self,
            shape=(groups, q, p),
            g_is_left=not self.g_is_left,
            is_swapped=not self.is_swapped,
        )
