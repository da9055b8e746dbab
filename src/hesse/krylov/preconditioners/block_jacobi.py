# SPDX-License-Identifier: Apache-2.0
"""Block Jacobi: invert the diagonal blocks, computed column by column or estimated with signs.

All blocks lie in one tensor (b, s, s), the smaller ones with zeros around: a few operations on it
serve them all, be they three or a million.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_count, check_not_empty
from hesse.krylov.preconditioners.pieces import Pieces
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products, check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.vectors.rows import stacked
from hesse.vectors.space import Space


@public("hesse.krylov.preconditioners.block_jacobi({A})")
def block_jacobi(
    A: LinearOperator | Tensor,
    size: int = 32,
    *,
    probes: int | None = 4,
    generator: torch.Generator | None = None,
) -> Preconditioner:
    r"""The inverse of the diagonal blocks of A, their eigenvalues in absolute value.

    $$ M = \operatorname{diag}(|A_{11}|, \dots, |A_{bb}|)^{-1}, \qquad |B| = (B^2)^{1/2} $$

    The blocks are the leaves of A's space, each cut into consecutive pieces of at most `size`.

    A product with one unit vector gives one column of one block. A product with one unit vector in
    every block, each with a random sign, gives a column of each at once, with the couplings between
    the blocks as noise of mean zero: an estimate, exact if A is block diagonal.

    Absolute values make M positive definite for an indefinite A too. Eigenvalues that say nothing
    are raised: to the size of the noise, which two probes or more measure, and to rounding of the
    largest in the block (of all, for a block of zeros).

    Args:
        A: symmetric operator (or matrix).
        size: of the largest block, s.
        probes: the number of sign patterns for each column, 1 for an A known to be block diagonal;
            None for exact blocks, which are also taken where that is cheaper.
        generator: of the signs.

    Cost: min(n, s * probes) products; n s numbers, and n s^2 operations to invert
        the blocks. Of sharded vectors each process has the blocks in which it has entries, and
        those of blocks that several have are sent: one all-reduce of them a product with A or M.

    Raises:
        HesseError: A not symmetric; blocks that are all zero; NaN.

    References: Axelsson 1994, Iterative Solution Methods, doi:10.1017/CBO9780511624100, chapter 7;
        probing with signs: Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003.

    >>> A = torch.block_diag(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([[4.0]]))
    >>> M = block_jacobi(A, size=2, probes=1)
    >>> 3 * M.to_dense(), M.products
    (tensor([[ 2.0000, -1.0000,  0.0000],
            [-1.0000,  2.0000,  0.0000],
            [ 0.0000,  0.0000,  0.7500]]), 2)
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    check_not_empty(A.shape)
    pieces = Pieces(A.domain, check_count("size", size, 1))
    n, longest = A.domain.n, pieces.longest
    if probes is not None:
        probes = check_count("probes", probes, 1)
    if probes is None or probes * longest >= n:
        blocks, products = _exact(A, pieces), n
        noise = torch.zeros_like(blocks[:, 0, 0])
    else:
        blocks, noise = _estimate(A, pieces, probes, generator)
        products = probes * longest
    inverses = _inverses(A.domain, blocks, noise)
    return Preconditioner(_Blocks(A.domain, pieces, inverses), products)


class _Blocks(LinearOperator):
    """Symmetric blocks (b, s, s) on the pieces of this process."""

    def __init__(self, space: Space, pieces: Pieces, blocks: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.pieces, self.blocks = pieces, blocks

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        return self.pieces.joined(self.blocks @ self.pieces.of(block))


def _exact(A: LinearOperator, pieces: Pieces) -> Tensor:
    """The blocks, from one product a column."""
    A.announce(A.domain.n)
    size = pieces.longest
    blocks = A.domain.zeros().new_zeros(len(pieces.own), size, size)
    own = {number: row for row, number in enumerate(pieces.own.tolist())}
    for number, (start, stop) in enumerate(pieces.bounds.tolist()):
        units = A.domain.units(start, stop - start).T
        seen = pieces.seen(check_finite_products(A, A._matmat(units)))
        if number in own:
            row, k = own[number], stop - start
            blocks[row, :k, :k] = seen[pieces.index[row, :k]]
    return blocks


def _estimate(
    A: LinearOperator,
    pieces: Pieces,
    probes: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Every block as a mean over the probes, and the spectral norm its error is likely to have.

    The j-th columns of all blocks come together: `probes` products in one block for each j.
    """
    count, size, index = len(pieces.own), pieces.longest, pieces.index
    A.announce(probes * size)
    each = Space.flat(len(pieces.bounds), A.dtype, A.device)
    each = replace(each, ranks=A.domain.ranks)
    blocks = A.domain.zeros().new_zeros(count, size, size)
    variance = blocks.new_zeros(count)
    for j in range(size):
        signs = stacked(probes, (each.rademacher(generator) for _ in range(probes))).T[pieces.own]
        V = signs.new_zeros(pieces.num_seen, probes)
        V[index[:, j]] = signs
        products = check_finite_products(A, A._matmat(V[: A.domain.size]))
        samples = pieces.of(products) * signs[:, None, :]
        samples[pieces.lengths <= j] = 0.0  # no such column
        blocks[:, :, j] = samples.mean(dim=2)
        if probes > 1 and count:  # of no blocks torch's var would warn
            variance += samples.var(dim=2).sum(dim=1) / probes
    # A random matrix of s^2 entries with variances v has a norm of about sqrt(sum v / s).
    return blocks, (variance / pieces.lengths).sqrt()


def _inverses(space: Space, blocks: Tensor, noise: Tensor) -> Tensor:
    """|B|^-1 for each block, with no eigenvalue of |B| below the noise."""
    values, Q = torch.linalg.eigh((blocks + blocks.mT) / 2)
    sizes = values.abs()
    largest = sizes.amax(dim=1)
    _, largest_of_all = space.extremes(largest)
    if not largest_of_all > 0.0:
        raise OperatorError(
            expected="diagonal blocks that are not zero",
            got="none",
            remedy="Add damping, or solve without this preconditioner.",
        )
    scale = torch.where(largest > 0.0, largest, largest_of_all)
    rounding = 10 * blocks.shape[1] * torch.finfo(values.dtype).eps
    least = torch.maximum(noise, rounding * scale)
    return (Q / torch.maximum(sizes, least[:, None])[:, None, :]) @ Q.mT
