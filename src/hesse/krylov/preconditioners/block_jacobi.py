# SPDX-License-Identifier: Apache-2.0
"""Block Jacobi: invert the diagonal blocks, computed column by column or estimated with signs.

All blocks lie in one tensor (b, s, s), the smaller ones with zeros around: a few operations on it
serve them all, be they three or a million.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_count, check_not_empty
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
        the blocks.

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
    A.domain.check_whole("blocks", "Take preconditioner='jacobi' or 'nystrom'.")
    size = check_count("size", size, 1)
    index = _pieces(A.domain, size)
    n, largest = A.domain.n, index.shape[1]
    if probes is not None:
        probes = check_count("probes", probes, 1)
    if probes is None or probes * largest >= n:
        blocks, products = _exact(A, index), n
        noise = torch.zeros_like(blocks[:, 0, 0])
    else:
        blocks, noise = _estimate(A, index, probes, generator)
        products = probes * largest
    return Preconditioner(_Blocks(A.domain, index, _inverses(blocks, noise)), products)


class _Blocks(LinearOperator):
    """Symmetric blocks (b, s, s) on the entries index (b, s); an entry n stands for none."""

    def __init__(self, space: Space, index: Tensor, blocks: Tensor) -> None:
        super().__init__(space, symmetric=True)
        self.index, self.blocks = index, blocks

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        product = block.new_zeros(len(block) + 1, block.shape[1])
        product[self.index] = self.blocks @ _gather(block, self.index)
        return product[:-1]


def _gather(block: Tensor, index: Tensor) -> Tensor:
    """The rows of an (n, k) block at the entries of the index, zero for none: (b, s, k)."""
    return torch.cat([block, block.new_zeros(1, block.shape[1])])[index]


def _pieces(space: Space, size: int) -> Tensor:
    """The index (b, s): consecutive pieces of at most `size` entries that respect the leaves."""
    pieces, end = [], 0
    for leaf in space.sizes:
        start, end = end, end + leaf
        pieces += torch.arange(start, end, device=space.device).split(size)
    return torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=space.size)


def _exact(A: LinearOperator, index: Tensor) -> Tensor:
    """The blocks, from one product a column."""
    A.announce(A.domain.n)
    blocks = A.domain.zeros().new_zeros(*index.shape, index.shape[1])
    for block, piece in zip(blocks, index, strict=True):
        piece = piece[piece < A.domain.size]
        unit = block.new_zeros(A.domain.size, len(piece))
        unit[piece, torch.arange(len(piece), device=A.device)] = 1.0
        block[: len(piece), : len(piece)] = check_finite_products(A, A._matmat(unit))[piece]
    return blocks


def _estimate(
    A: LinearOperator,
    index: Tensor,
    probes: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Every block as a mean over the probes, and the spectral norm its error is likely to have.

    The j-th columns of all blocks come together: `probes` products in one block for each j.
    """
    count, size = index.shape
    A.announce(probes * size)
    each = Space.flat(count, A.dtype, A.device)
    blocks = A.domain.zeros().new_zeros(count, size, size)
    variance = each.zeros()
    for j in range(size):
        signs = stacked(probes, (each.rademacher(generator) for _ in range(probes))).T
        V = signs.new_zeros(A.domain.size + 1, probes)
        V[index[:, j]] = signs
        samples = _gather(check_finite_products(A, A._matmat(V[:-1])), index) * signs[:, None, :]
        samples[index[:, j] == A.domain.size] = 0.0  # no such column
        blocks[:, :, j] = samples.mean(dim=2)
        if probes > 1:
            variance += samples.var(dim=2).sum(dim=1) / probes
    # A random matrix of s^2 entries with variances v has a norm of about sqrt(sum v / s).
    return blocks, (variance / (index < A.domain.size).sum(dim=1)).sqrt()


def _inverses(blocks: Tensor, noise: Tensor) -> Tensor:
    """|B|^-1 for each block, with no eigenvalue of |B| below the noise."""
    values, Q = torch.linalg.eigh((blocks + blocks.mT) / 2)
    sizes = values.abs()
    largest = sizes.amax(dim=1)
    if not bool((largest > 0.0).any()):
        raise OperatorError(
            expected="diagonal blocks that are not zero",
            got="none",
            remedy="Add damping, or solve without this preconditioner.",
        )
    scale = torch.where(largest > 0.0, largest, largest.max())
    rounding = 10 * blocks.shape[1] * torch.finfo(values.dtype).eps
    least = torch.maximum(noise, rounding * scale)
    return (Q / torch.maximum(sizes, least[:, None])[:, None, :]) @ Q.mT
