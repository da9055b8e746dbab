# SPDX-License-Identifier: Apache-2.0
"""The curvature that a user's function makes at a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator, diagonal_operator
from hesse.vectors.space import Space, Tree

Factory = Callable[[Any, Any], LinearOperator]
"""(f, x) -> the curvature of f at x, an approximation of its Hessian."""

_MOST_TRIES = 12  # dampings, each ten times the last, until the damped matrix is regular


def made(
    factory: Factory, f: Any, space: Space, x: Tree, what: str = "curvature"
) -> LinearOperator:
    """The curvature at x that a factory makes; raises unless it fits."""
    A = factory(f, x)
    if not isinstance(A, LinearOperator) or A.shape != (space.n, space.n) or not A.symmetric:
        raise OperatorError(
            expected=f"{what}(f, x) to be a symmetric operator of {space.n} variables",
            got=str(A) if isinstance(A, LinearOperator) else type(A).__name__,
            remedy="Return an operator such as hesse.fisher_operator(f, x).",
        )
    return A


def name_of(choice: str | Factory) -> str:
    """A name, or that of a factory."""
    named = type(choice).__name__
    return choice if isinstance(choice, str) else getattr(choice, "__qualname__", named)


def shifted(A: LinearOperator, shift: float) -> LinearOperator | None:
    """A + c I as a matrix of the structure of A; None where there is none."""
    if shift == 0.0:
        return A
    space = A.domain
    d = torch.full((space.size,), shift, dtype=space.dtype, device=space.device)
    return A._plus_diagonal(diagonal_operator(d))


def damped_inverse(A: LinearOperator, damping: float) -> LinearOperator | None:
    """(A + lambda I)^-1 where the structure of A gives it; None where it does not.

    Where A + lambda I is singular to rounding, lambda is raised.
    """
    if not A.is_structured:
        return None
    for k in range(_MOST_TRIES):
        inverse = (A + 10.0**k * damping * IdentityOperator(A.domain))._inverse()
        if inverse is not None:
            return inverse
    return None
