# SPDX-License-Identifier: Apache-2.0
r"""Nystrom: a positive semi-definite matrix of low rank, from products with random directions.

$$ N = A \Omega\, (\Omega^T A \Omega)^{-1} (A \Omega)^T = U \Lambda U^T $$

The inverse may be that of a singular matrix. So it is taken of A + nu I, with nu of the size of the
rounding errors, by a Cholesky factor of the small matrix; nu is taken off the eigenvalues again
(Tropp, Yurtsever, Udell & Cevher 2017, algorithm 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, check_count, check_not_empty
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products, check_symmetric, not_semidefinite
from hesse.operators.dense import aslinearoperator
from hesse.operators.low_rank import LowRankOperator, LowRankPlusDiagonal
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space


@public("hesse.nystrom_operator({A}, rank={rank})")
def nystrom_operator(
    A: LinearOperator | Tensor,
    rank: int = 20,
    *,
    sketch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> LinearOperator:
    r"""The Nystrom approximation of a positive semi-definite A, as an operator of low rank.

    $$ A \approx A \Omega\, (\Omega^T A \Omega)^{-1} (A \Omega)^T = U \Lambda U^T $$

    It is never larger than A, and exact if the rank of A is at most r. An A that is a sum G + c I,
    as that of a risk with weight decay, is taken apart: the result is the approximation of G, plus
    c I.

    Args:
        A: symmetric positive semi-definite operator (or matrix), n x n.
        rank: r, the number of eigenvalues that are kept, the largest ones.
        sketch_size: l, the number of random directions, r <= l <= n; default r. With l = 2 r + 1
            the mean error is at most 2 (lambda_(r+1) + ... + lambda_n) in the trace norm.
        generator: of the directions.

    Returns:
        An operator on the vectors of A. With a multiple of the identity added, its inverse,
        determinant, functions and samples take no product (see `hesse.low_rank_operator`).

    Cost: l products, in blocks; r vectors to keep, 5 l while it is made.

    Raises:
        HesseError: A not symmetric, or with a negative eigenvalue beyond rounding among those
            seen; r or l out of range; NaN.

    References: Tropp, Yurtsever, Udell & Cevher 2017, arXiv:1706.05736; Frangella, Tropp & Udell
        2023, doi:10.1137/21M1466244.

    >>> u = torch.tensor([[1.0], [2.0]])
    >>> nystrom_operator(u @ u.T, rank=1).to_dense()
    tensor([[1., 2.],
            [2., 4.]])
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    check_not_empty(A.shape)
    n, rank = A.domain.n, check_count("rank", rank, 1)
    size = rank if sketch_size is None else check_count("sketch_size", sketch_size, 1)
    if not rank <= size <= n:
        raise ArgumentError(
            expected=f"rank <= sketch_size <= n = {n}",
            got=f"rank = {rank}, sketch_size = {size}",
            remedy="Ask for fewer; of a small matrix take all, with torch.linalg.eigh.",
        )
    G, c = A._split_shift()
    U, values = eigenpairs_of_sketch(A.domain, *sketch(G, size, generator))
    low_rank = LowRankOperator(A.domain, U[:, :rank].contiguous(), values[:rank])
    if c == 0.0:
        return low_rank
    return LowRankPlusDiagonal(low_rank, values.new_full((A.domain.size,), c))


def sketch(
    A: LinearOperator,
    count: int,
    generator: torch.Generator | None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """(Omega, A Omega) with `count` more directions, orthonormal among all."""
    A.announce(count)
    new = stacked(count, (A.domain.gaussian(generator) for _ in range(count))).T
    if known is None:
        Omega, _ = A.domain.qr(new)
        return Omega, check_finite_products(A, A._matmat(Omega))
    Omega, Y = known
    new, _ = A.domain.qr(new - Omega @ A.domain.total(Omega.T @ new))
    products = check_finite_products(A, A._matmat(new))
    return torch.cat([Omega, new], dim=1), torch.cat([Y, products], dim=1)


def eigenpairs_of_sketch(
    space: Space, Omega: Tensor, Y: Tensor, *, may_be_indefinite: bool = False
) -> tuple[Tensor, Tensor]:
    """U and the diagonal of Lambda, descending, in float64.

    Of an indefinite A, if that may be, the positive part of the approximation of A + nu I less
    nu, with nu above twice the most negative value seen.
    """
    eps = torch.finfo(Y.dtype).eps
    core = space.total(Omega.T.double() @ Y.double())
    core = (core + core.T) / 2
    smallest, largest = torch.linalg.eigvalsh(core)[[0, -1]].tolist()
    if smallest < -(eps**0.5) * max(largest, 0.0) and not may_be_indefinite:
        raise not_semidefinite(f"v'Av = {smallest:.3g} |v|^2 for some v")
    scale = float(space.column_norms(Y).norm())
    shift = max(space.n**0.5 * eps * scale, -2.0 * smallest)
    eye = torch.eye(len(core), dtype=core.dtype, device=core.device)
    root = torch.linalg.cholesky(core + shift * eye) if shift > 0.0 else eye
    shifted = torch.add(Y, Omega, alpha=shift)
    B = torch.linalg.solve_triangular(root.T.to(Y), shifted, upper=True, left=False)
    U, roots = space.svd(B)
    return U, (roots.double() ** 2 - shift).clamp(min=0.0)
