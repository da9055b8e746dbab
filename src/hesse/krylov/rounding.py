# SPDX-License-Identifier: Apache-2.0
"""When a number is nothing but the rounding of larger ones: one rule for all Krylov methods."""

from __future__ import annotations

import torch

from hesse.operators.algebra import LinearOperator
from hesse.vectors.space import Space

_ROUNDINGS = 10


def unit_roundoff(A: LinearOperator | Space) -> float:
    """eps of the dtype of an operator or a space."""
    return torch.finfo(A.dtype).eps


def rounding_level(eps: float, largest: float) -> float:
    """What rounding leaves of a difference of numbers of this size: ten times eps.

    >>> rounding_level(1e-3, 2.0)
    0.02
    """
    return _ROUNDINGS * eps * largest
