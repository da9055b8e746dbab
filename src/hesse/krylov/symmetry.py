# SPDX-License-Identifier: Apache-2.0
"""Whether v'A w and w'A v are the same number, as they are for a symmetric operator."""

from __future__ import annotations

from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator

# A difference beyond this fraction of the largest product is not explained by rounding, not even in
# products in bfloat16; for a basis in lower precision it must also exceed so many times its eps.
_ASYMMETRY, _ROUNDINGS = 0.02, 100


def check_symmetry(A: LinearOperator, difference: float, largest: float, eps: float) -> None:
    """Raise if v'A w and w'A v differ by more than rounding explains."""
    if difference > max(_ASYMMETRY, _ROUNDINGS * eps) * largest:
        raise OperatorError(
            expected="a symmetric operator, as symmetric=True says",
            got=f"v'A w and w'A v that differ by {difference:.3g}, for products of size "
            f"{largest:.3g}",
            remedy="Check it with hesse.testing.check_operator; leave out symmetric=True.",
        )
