# SPDX-License-Identifier: Apache-2.0
"""Checks of operators: square, symmetric, finite products."""

from __future__ import annotations

from torch import Tensor

from hesse.errors import NonFiniteError, OperatorError, ShapeError
from hesse.operators.protocol import OperatorProtocol


def check_square(A: OperatorProtocol) -> None:
    """Raise unless A has as many rows as columns."""
    rows, columns = A.shape
    if rows != columns:
        raise ShapeError(
            expected="a square operator",
            got=f"shape {A.shape}",
            remedy="Use A.T @ A or A @ A.T.",
        )


PROMISE = (
    "If A = A', say symmetric=True where A is made, of SciPy's in hesse.aslinearoperator(A, "
    "symmetric=True); a sum or product of operators, which takes no such argument, becomes "
    "hesse.function_operator(lambda v: A @ v, A.domain, symmetric=True)."
)
"""What to do about an operator that is symmetric and not known to be."""


def check_symmetric(A: OperatorProtocol, remedy: str = PROMISE) -> None:
    """Raise unless A is known to be symmetric."""
    if not A.symmetric:
        raise OperatorError(
            expected="a symmetric operator",
            got="one that is not known to be symmetric",
            remedy=remedy,
        )


def not_semidefinite(got: str) -> OperatorError:
    """The error for an A that turns out to have a negative eigenvalue."""
    return OperatorError(
        expected="a positive semi-definite operator",
        got=got,
        remedy="Use a Gauss-Newton matrix, or add damping: A + c * hesse.identity_operator(n).",
    )


def check_finite_products(A: OperatorProtocol, products: Tensor) -> Tensor:
    """Products with A, or an error for NaN and Inf in them."""
    if not A.codomain.all_finite(products):
        raise NonFiniteError(
            expected="finite products",
            got=f"NaN or Inf in a product with {A._title()}",
            remedy="Check the operator with hesse.testing.check_operator.",
        )
    return products
