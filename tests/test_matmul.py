# SPDX-License-Identifier: Apache-2.0
"""Products of matrices into rows that begin with a cache line, and second moments: in float64."""

from __future__ import annotations

import pytest
import torch

from hesse.curvature.kronecker.row_products import gram
from hesse.operators.batched_kronecker import BatchedKronecker, Factors
from hesse.vectors.matmul import empty_matrix, matmul

SHAPES = [(600, 7, 785), (513, 30, 513), (512, 3, 512), (3, 4, 5), (1, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["rows", "columns", "apart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_float64(shape, layout, dtype):
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(size, generator=generator).to(dtype) for size in ((m, k), (k, n)))
    expected = A.double() @ B.double()
    if layout == "columns":
        A, B = A.T.contiguous().T, B.T.contiguous().T
    elif layout == "apart":
        A, B = (empty_matrix(*X.shape, X).copy_(X) for X in (A, B))
    product = matmul(A, B)
    assert product.dtype == dtype
    torch.testing.assert_close(product.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 255, 256, 257, 300, 785])
@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_second_moments_are_those_of_float64(columns, ones, transposed):
    """X'X of which one half is computed, and of X with a column of ones."""
    X = torch.randn(40, columns, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([X, torch.ones(40, 1)], 1) if ones else X
    expected = whole.double().T @ whole.double()
    found = gram(X.T.contiguous().T if transposed else X, ones=ones)
    assert torch.equal(found, found.T)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_batches_are_multiplied_as_by_torch():
    A, B = torch.randn(2, 600, 3), torch.randn(3, 785)
    assert torch.equal(matmul(A, B), A @ B)


@pytest.mark.parametrize("groups", [1, 2])
def test_kronecker_products_of_this_size(groups):
    """L X R' and L' X R for factors that are not symmetric, whose products lie apart."""
    generator = torch.Generator().manual_seed(0)
    L, R = (torch.randn(groups, p, p, generator=generator) for p in (401, 803))
    A = BatchedKronecker(Factors(L), Factors(R), symmetric=False)
    V = torch.randn(groups * 401 * 803, 2, generator=generator)
    X = V.T.reshape(2, groups, 401, 803).double()
    for product, one, two in ((A @ V, L, R), (A.T @ V, L.mT, R.mT)):
        expected = one.double() @ X @ two.double().mT
        error = product.double() - expected.reshape(2, -1).T
        assert error.norm() <= 1e-5 * expected.norm()
    torch.testing.assert_close(A @ V[:, 0], (A @ V)[:, 0], rtol=1e-4, atol=1e-2)
