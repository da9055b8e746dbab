# SPDX-License-Identifier: Apache-2.0
"""Jacobi: divide by the diagonal, which is given, known, computed, or estimated."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_count, check_not_empty
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_finite_products, check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.operators.diagonal import DiagonalOperator
from hesse.vectors.rows import stacked
from hesse.vectors.space import Tree


@public("hesse.krylov.preconditioners.jacobi({A})")
def jacobi(
    A: LinearOperator | Tensor,
    *,
    diagonal: Tree | None = None,
    probes: int = 32,
    generator: torch.Generator | None = None,
) -> Preconditioner:
    r"""The inverse of the diagonal of A, in absolute value.

    $$ M = \operatorname{diag}(|d_i|)^{-1}, \qquad
       d = \frac1k \sum_{j=1}^k z_j \odot A z_j, \quad z_j \in \{-1, 1\}^n $$

    where the diagonal is neither given, nor known without products as that of a matrix is, nor
    computed exactly for at most k products, as that of a Gauss-Newton or Fisher matrix of up to 4 k
    outputs of an example is (see `hesse.diagonal`). With more outputs that is sampled likewise.

    Absolute values make M positive definite for an indefinite A too. Entries that say nothing are
    raised: an estimate to its own standard error, an entry of zero to eps times the largest.

    It helps where the variables differ in scale and are weakly coupled; elsewhere, as for the
    Gauss-Newton matrix of many networks, CG may take more iterations with it than without.

    Args:
        A: symmetric operator (or matrix).
        diagonal: the diagonal, or an approximation: a flat vector or a tree like A's.
        probes: k, at least 2; the error of an entry is its row's norm outside the diagonal over
            sqrt(k).
        generator: of the signs.

    Cost: none, what the exact diagonal takes, or `probes` products, in one block; 3 k vectors while
        it is made, one then.

    Raises:
        HesseError: A not symmetric; a diagonal that is zero, or of another shape; NaN.

    References: Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003.

    >>> jacobi(torch.tensor([[2.0, 1.0], [1.0, -4.0]])) @ torch.ones(2)
    tensor([0.5000, 0.2500])
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    check_not_empty(A.shape)
    probes = check_count("probes", probes, 2)
    if diagonal is None:
        size, products = absolute_diagonal(A, probes, generator)
    else:
        size, products = A.domain.enter(diagonal, what="d")[0].abs(), 0
    _, largest = A.domain.extremes(size)
    if not 0.0 < largest < float("inf"):
        raise OperatorError(
            expected="a diagonal that is finite and not zero",
            got=f"one whose largest entry is {largest:.3g}",
            remedy="Add damping, or solve without this preconditioner.",
        )
    numbers = torch.finfo(size.dtype)
    size = torch.where(size < numbers.tiny, numbers.eps * largest, size)
    return Preconditioner(DiagonalOperator(A.domain, 1.0 / size), products)


def absolute_diagonal(
    A: LinearOperator, probes: int, generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """|diag(A)| for at most so many products, and these: known, computed, or estimated."""
    known = A._diagonal()
    d, products = _estimate(A, probes, generator) if known is None else (known, 0)
    return d.abs(), products


def _estimate(
    A: LinearOperator, probes: int, generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """The diagonal for at most so many products, and these.

    An estimate is the mean of samples in absolute value, but at least its standard error.
    """
    way = A._computed_diagonal()
    if way is not None and way.products <= probes:
        return check_finite_products(A, way.exact()), way.products
    if way is not None:
        probes = max(2, probes // way.products_a_sample)
        samples, products = stacked(probes, way.samples(probes, generator)).T, way.products_a_sample
    else:
        A.announce(probes)
        Z = stacked(probes, (A.domain.rademacher(generator) for _ in range(probes))).T
        samples, products = Z * A._matmat(Z), 1
    check_finite_products(A, samples)
    if len(samples) == 0:  # on this rank; torch's std would warn
        return samples.new_zeros(0), probes * products
    error = samples.std(dim=1) / probes**0.5
    return torch.maximum(samples.mean(dim=1).abs(), error), probes * products
