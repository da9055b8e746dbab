# SPDX-License-Identifier: Apache-2.0
"""Nystrom: the large eigenvalues of a positive semi-definite matrix, from random products.

A block of products A Omega with random directions shows the matrix where it is large. What it
shows is flattened to the level of the smallest eigenvalue seen; the damping bounds the rest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_count, check_not_empty, check_tolerances
from hesse.krylov.nystrom import eigenpairs_of_sketch, sketch
from hesse.krylov.preconditioners.deflation import deflation
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.krylov.rounding import unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator


@public("hesse.krylov.preconditioners.nystrom({A})")
def nystrom(
    A: LinearOperator | Tensor,
    rank: int = 20,
    *,
    max_rank: int | None = None,
    damping: float = 0.0,
    generator: torch.Generator | None = None,
) -> Preconditioner:
    r"""The randomised Nystrom preconditioner of A + damping I, for positive semi-definite A.

    $$ A \Omega (\Omega^T A \Omega)^{-1} (A \Omega)^T = U \Lambda U^T, \qquad
       M = (\lambda_r + \mu)\, U (\Lambda + \mu I)^{-1} U^T + (I - U U^T) $$

    with mu the damping. An A that is a sum G + c I is taken apart: G is sketched, and c belongs to
    mu. A damped operator that does not say so is sketched whole with mu = 0, which works too, but
    sees small eigenvalues of G less well, since damping is spread over all n directions.

    Args:
        A: symmetric positive semi-definite operator (or matrix).
        rank: r, the number of random directions.
        max_rank: double the rank, keeping what was computed, until lambda_r is at most mu or the
            rank is this; None stays with `rank`, and so does a mu of zero, which ends nothing.
        damping: of the system to be solved, where A is that system's operator without it.
        generator: of the Gaussian directions.

    Cost: one product for each direction, in blocks; r vectors to keep, 5 r while it is made.

    Raises:
        HesseError: A not symmetric, zero, or with a negative eigenvalue beyond rounding among those
            seen (one that is not seen leaves M positive definite all the same); NaN.

    References: Frangella, Tropp & Udell 2023, doi:10.1137/21M1466244.

    >>> A = torch.diag(torch.tensor([100.0, 10.0, 1.0]))
    >>> M = nystrom(A, rank=3, generator=torch.Generator().manual_seed(0))
    >>> M @ torch.ones(3), M.products
    (tensor([0.0100, 0.1000, 1.0000]), 3)
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    check_not_empty(A.shape)
    rank = check_count("rank", rank, 1)
    check_tolerances(damping=damping)
    if max_rank is not None:
        max_rank = check_count("max_rank", max_rank, 1)
    G, mu = _undamped(A, damping)
    limit = min(A.domain.n, rank if max_rank is None else max(rank, max_rank))
    Omega, Y = sketch(G, min(rank, limit), generator)
    U, values = eigenpairs_of_sketch(A.domain, Omega, Y)
    while len(values) < limit and float(values[-1]) > mu > 0.0:
        more = min(2 * len(values), limit) - len(values)
        Omega, Y = sketch(G, more, generator, (Omega, Y))
        U, values = eigenpairs_of_sketch(A.domain, Omega, Y)
    level = max(float(values[-1]) + mu, unit_roundoff(A) * float(values[0]))
    if level == 0.0:
        raise OperatorError(
            expected="an operator that is not zero",
            got="no eigenvalue above zero",
            remedy="Add damping, or solve without this preconditioner.",
        )
    M = deflation(A.domain, U, (values + mu).clamp(min=level), level)
    return Preconditioner(M, products=len(values))


def _undamped(A: LinearOperator, damping: float) -> tuple[LinearOperator, float]:
    """(G, mu) with A + damping I = G + mu I; a negative shift is left where it is."""
    G, c = A._split_shift()
    return (G, c + damping) if c > 0.0 else (A, damping)
