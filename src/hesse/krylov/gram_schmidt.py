# SPDX-License-Identifier: Apache-2.0
"""Gram-Schmidt, twice: twice is enough (Parlett 1998, section 6.9)."""

from __future__ import annotations

from torch import Tensor

from hesse.operators.base import LinearOperator


def components(A: LinearOperator, basis: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """The row without its components in the basis, and these (float64, on the CPU)."""
    first = A.inners(basis, row)
    row = row - first @ basis
    second = A.inners(basis, row)
    return row - second @ basis, (first.double() + second.double()).cpu()
