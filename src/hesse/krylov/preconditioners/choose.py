# SPDX-License-Identifier: Apache-2.0
"""`preconditioner=`: nothing, an operator, a matrix, or the name of a way to make one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hesse.errors import ArgumentError, ShapeError, check_choice
from hesse.krylov.preconditioners.block_jacobi import block_jacobi
from hesse.krylov.preconditioners.jacobi import jacobi
from hesse.krylov.preconditioners.nystrom import nystrom
from hesse.krylov.preconditioners.pivoted_cholesky import pivoted_cholesky
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.vectors.space import Space

_MOST_DIRECTIONS = 160  # of Nystrom's, which stops before where damping covers the rest
_PROBES, _RANK, _SIZE, _PATTERNS = 32, 20, 32, 4

NAMES = ["jacobi", "block-jacobi", "nystrom", "pivoted-cholesky"]
"""The methods that need nothing but A."""


def as_preconditioner(
    given: LinearOperator | Tensor | str | None,
    A: LinearOperator,
    generator: torch.Generator | None = None,
    most: float = math.inf,
) -> Preconditioner | None:
    """The preconditioner for A that `given` stands for, in A's space; None for None.

    Its `products` are those taken here, fewer than `most`: none for an operator that was made
    before.

    Raises:
        HesseError: an unknown name; one that takes too many products; an operator of another shape,
            dtype or device than A's.

    >>> from hesse.operators import diagonal_operator
    >>> A = diagonal_operator(torch.tensor([1.0, 4.0]))
    >>> as_preconditioner("jacobi", A) @ torch.ones(2)
    tensor([1.0000, 0.2500])
    """
    if given is None:
        return None
    if isinstance(given, str):
        return _named(given, A, generator, most)
    return Preconditioner(on_space(given, A.domain), products=0)


def on_space(given: LinearOperator | Tensor, space: Space) -> LinearOperator:
    """A preconditioner that was made before; raises unless it is for vectors of this space."""
    M = aslinearoperator(given)._in_space(space)
    if M.shape != (space.n, space.n):
        raise ShapeError(
            expected=f"a preconditioner of shape {(space.n, space.n)}",
            got=f"shape {M.shape}",
            remedy="Give an operator close to the inverse of the matrix.",
        )
    space.common(M.domain)
    return M


def _named(
    name: str, A: LinearOperator, generator: torch.Generator | None, most: float
) -> Preconditioner:
    if name == "quasi-newton":
        raise ArgumentError(
            expected="pairs (s, y) for a quasi-Newton preconditioner",
            got="its name alone",
            remedy="Pass preconditioner=hesse.krylov.preconditioners.quasi_newton(pairs).",
        )
    check_choice("preconditioner", name, NAMES)
    if not _products(name, A) < most:
        raise ArgumentError(
            expected=f"max_products > {_products(name, A)}, which preconditioner={name!r} may take",
            got=str(most),
            remedy="Raise max_products, or leave out the preconditioner.",
        )
    if name == "jacobi":
        return jacobi(A, probes=_PROBES, generator=generator)
    if name == "block-jacobi":
        return block_jacobi(A, _SIZE, probes=_PATTERNS, generator=generator)
    if name == "nystrom":
        directions = int(min(_MOST_DIRECTIONS, most // 2))  # the rest is for the iteration
        return nystrom(A, _RANK, max_rank=directions, generator=generator)
    return pivoted_cholesky(A, _RANK)


def _products(name: str, A: LinearOperator) -> int:
    """Products that making a preconditioner takes at most, that of Nystrom at least."""
    if name == "jacobi":
        return _PROBES if A._diagonal() is None else 0
    if name == "block-jacobi":
        return min(A.domain.n, _PATTERNS * min(_SIZE, max([0, *A.domain.whole_space.sizes])))
    return min(A.domain.n, _RANK)
