# SPDX-License-Identifier: Apache-2.0
"""Pivoted Cholesky: columns of a positive semi-definite matrix where its diagonal is largest."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_count, check_not_empty, check_tolerances
from hesse.krylov.preconditioners.deflation import deflation
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.krylov.rounding import unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products, check_symmetric, not_semidefinite
from hesse.operators.dense import aslinearoperator
from hesse.vectors.space import Tree


@public("hesse.krylov.preconditioners.pivoted_cholesky({A})")
def pivoted_cholesky(
    A: LinearOperator | Tensor,
    rank: int = 20,
    *,
    diagonal: Tree | None = None,
    damping: float = 0.0,
) -> Preconditioner:
    r"""The inverse of a partial Cholesky factorisation of A + damping I, up to a factor.

    $$ M = \mu\, (L L^T + \mu I)^{-1}, \qquad \mu = c + \frac1n \operatorname{tr}(A - L L^T) $$

    with L the first columns of the Cholesky factor of A, each taken where the remaining diagonal is
    largest, and c the damping: what is left of A counts as its mean. An A that is a sum G + c I is
    taken apart first.

    Args:
        A: symmetric positive semi-definite operator (or matrix).
        rank: number of columns; fewer where nothing remains.
        diagonal: the exact diagonal of A, if A does not know it.
        damping: of the system to be solved, where A is that system's operator without it.

    Cost: one product a column, one after the other; `rank` vectors to keep, 2 `rank` + 2 while it
        is made. Of sharded vectors four all-reduces of some numbers a column besides.

    Raises:
        HesseError: A not symmetric, zero, without a known diagonal, or not positive semi-definite;
            NaN.

    References: Harbrecht, Peters & Schneider 2012, doi:10.1016/j.apnum.2011.10.001; Gardner et al.
        2018, arXiv:1809.11165, section 4.1.

    >>> M = pivoted_cholesky(torch.diag(torch.tensor([100.0, 1.0, 1.0])), rank=1, damping=1.0)
    >>> M @ torch.ones(3), M.products          # mu = 1 + 2/3
    (tensor([0.0164, 1.0000, 1.0000]), 1)
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    check_not_empty(A.shape)
    rank = check_count("rank", rank, 1)
    check_tolerances(damping=damping)
    d = A._diagonal() if diagonal is None else A.domain.enter(diagonal, what="d")[0]
    if d is None:
        raise _no_diagonal()
    A.domain.check_finite(d, "diagonal")
    G, c = A._split_shift()
    L, rest = _factor(G, (d - c).double(), min(rank, A.domain.n))
    U, roots = A.domain.svd(L)
    values = roots.double() ** 2
    largest = float(values[0]) if len(values) else 0.0
    mean = float(A.domain.total(rest.sum())) / A.domain.n
    mu = max(c + damping + mean, unit_roundoff(A) * largest)
    if mu <= 0.0:
        raise not_semidefinite(f"a mean of {mu:.3g} for the remaining diagonal")
    return Preconditioner(deflation(A.domain, U, values + mu, mu), products=L.shape[1])


def _factor(A: LinearOperator, d: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(L, the diagonal of A - L L'); ends early where nothing but rounding remains."""
    A.announce(rank)
    space = A.domain
    L = torch.zeros(space.size, rank, dtype=A.dtype, device=A.device)
    eps, largest = unit_roundoff(A), space.largest(d)[0]
    for k in range(rank):
        pivot, entry = space.argmax(d)
        if entry <= 10 * eps * largest:
            return L[:, :k], d.clamp(min=0.0)
        products = check_finite_products(A, A._matmat(space.units(pivot, 1).T))
        L[:, k] = (products[:, 0] - L @ space.row(L, pivot)) / entry**0.5
        d = d - L[:, k].double() ** 2
        least, _ = space.extremes(d)
        if least < -(eps**0.5) * largest:
            raise not_semidefinite(f"{least:.3g} in the remaining diagonal")
    return L, d.clamp(min=0.0)


def _no_diagonal() -> OperatorError:
    return OperatorError(
        expected="an operator that knows its diagonal",
        got="one that does not",
        remedy="Pass diagonal=d with the exact diagonal, or use nystrom(A), which needs none.",
    )
