# SPDX-License-Identifier: Apache-2.0
"""Jacobi by diagonals and by blocks: exact, estimated, and what they mend."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.krylov.preconditioners import (
    block_jacobi,
    jacobi,
)
from hesse.operators import (
    block_diagonal_operator,
    dense_operator,
    diagonal_operator,
)
from hesse.testing import CountingOperator, symmetric_matrix
from tests.preconditioned_matrices import DOUBLE, N, hidden, iterations, seeded

# --------------------------------------------------------------------------------------------------
# Jacobi


def test_jacobi_takes_the_diagonal_that_is_given_or_known():
    matrix = symmetric_matrix(torch.linspace(1.0, 2.0, N))
    known = jacobi(matrix)
    given_it = jacobi(hidden(matrix), diagonal=matrix.diagonal())
    for M in (known, given_it):
        assert M.products == 0
        torch.testing.assert_close(M.to_dense(), torch.diag(1.0 / matrix.diagonal()))


def test_jacobi_estimates_the_diagonal_with_the_error_it_says():
    matrix = symmetric_matrix(torch.linspace(1.0, 2.0, N))
    off_diagonal = (matrix - torch.diag(matrix.diagonal())).norm(dim=1)
    for probes in (10, 1000):
        d = 1.0 / jacobi(hidden(matrix), probes=probes, generator=seeded())._diagonal()
        z = (d - matrix.diagonal()) / (off_diagonal / probes**0.5)
        assert 0.5 < float((z**2).mean()) < 2.0  # a mean of 40 squares of variance one


def test_jacobi_mends_scales():
    scales = torch.logspace(0, 4, N, dtype=DOUBLE)
    A = dense_operator(scales[:, None] * symmetric_matrix(torch.linspace(1.0, 4.0, N)) * scales)
    # The condition falls from some 1e8 to about that of the middle factor, 4: 305 iterations to 22,
    # or 52 with the noise of the estimate.
    assert iterations(A, jacobi(A)) <= 25
    assert iterations(A, jacobi(hidden(A.matrix), generator=seeded())) <= 60
    assert iterations(A) >= 250


def test_jacobi_leaves_small_entries_alone_and_mends_zeros():
    d = torch.tensor([1.0, 1e-20, 0.0, -2.0])
    expected = torch.tensor([1.0, 1e20, 1.0 / (2.0 * torch.finfo(torch.float32).eps), 0.5])
    torch.testing.assert_close(jacobi(diagonal_operator(d))._diagonal(), expected)


def test_jacobi_knows_signs_and_noise_of_its_estimate():
    d = torch.linspace(1.0, 2.0, N, dtype=DOUBLE) * torch.where(torch.arange(N) % 3 == 0, -1.0, 1.0)
    M = jacobi(hidden(torch.diag(d)), generator=seeded())  # signs make no error in a diagonal
    torch.testing.assert_close(M._diagonal(), 1.0 / d.abs())
    matrix = symmetric_matrix(torch.linspace(-1.0, 1.0, N))
    matrix.fill_diagonal_(0.0)  # all noise
    M = jacobi(hidden(matrix), probes=50, generator=seeded())
    assert float((1.0 / M._diagonal() / (matrix.norm(dim=1) / 50**0.5)).min()) > 0.6


# --------------------------------------------------------------------------------------------------
# Block Jacobi


def test_exact_blocks_are_inverted():
    matrix = symmetric_matrix(torch.linspace(1.0, 2.0, 10))
    M = block_jacobi(hidden(matrix), 4, probes=None)
    parts = [torch.linalg.inv(matrix[i : i + 4, i : i + 4]) for i in (0, 4, 8)]
    torch.testing.assert_close(M.to_dense(), torch.block_diag(*parts))


def test_blocks_are_the_leaves_cut_to_size():
    tree = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.zeros(5, dtype=DOUBLE)}
    matrix = symmetric_matrix(torch.linspace(1.0, 2.0, 8))
    A = dense_operator(matrix) + diagonal_operator(tree)
    M = block_jacobi(A, 4, probes=None)
    inverse = torch.linalg.inv
    parts = [inverse(matrix[:3, :3]), inverse(matrix[3:7, 3:7]), inverse(matrix[7:, 7:])]
    torch.testing.assert_close(M.to_dense(), torch.block_diag(*parts))


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
@settings(max_examples=25)
def test_one_probe_is_exact_for_a_block_diagonal_matrix(sizes, seed):
    blocks = {
        f"leaf{i}": symmetric_matrix(torch.linspace(1.0, 3.0, n), seed + i)
        for i, n in enumerate(sizes)
    }
    A = CountingOperator(block_diagonal_operator(blocks))
    M = block_jacobi(A, 5, probes=1, generator=seeded(seed))
    assert A.products == M.products == min(max(sizes), sum(sizes))
    torch.testing.assert_close(M.to_dense(), torch.linalg.inv(torch.block_diag(*blocks.values())))


def test_estimated_blocks_approach_the_exact_ones():
    matrix = symmetric_matrix(torch.linspace(1.0, 3.0, 100))
    exact = block_jacobi(matrix, 2, probes=None).to_dense()
    errors = [
        float((block_jacobi(matrix, 2, probes=m, generator=seeded()).to_dense() - exact).norm())
        for m in (3, 48)
    ]
    assert 2.0 < errors[0] / errors[1] < 8.0  # 4 by the law of large numbers


def test_a_small_block_is_not_disturbed_by_columns_that_it_has_not():
    """b sees the second and third entries of a, when columns are probed that b has not."""
    matrix = 4.0 * torch.eye(4, dtype=DOUBLE)
    matrix[3, 1:3] = matrix[1:3, 3] = 1.0
    tree = {"a": torch.zeros(3, dtype=DOUBLE), "b": torch.zeros(1, dtype=DOUBLE)}
    A = dense_operator(matrix) + diagonal_operator(tree)
    M = block_jacobi(A, 3, probes=1, generator=seeded())
    assert M.products == 3
    assert float(M.to_dense()[3, 3]) == pytest.approx(0.25)


def test_blocks_mend_strong_couplings():
    """Pairs of variables, correlated by 0.9 to 0.9999, that hardly see one another."""
    scales = torch.logspace(0, 3, 20, dtype=DOUBLE)
    couplings = torch.linspace(0.9, 0.9999, 20, dtype=DOUBLE)
    pair, swap = torch.eye(2, dtype=DOUBLE), torch.eye(2, dtype=DOUBLE).flip(0)
    strong = [s * (pair + c * swap) for s, c in zip(scales, couplings, strict=True)]
    weak = 1e-4 * symmetric_matrix(torch.linspace(0.0, 1.0, N))
    A = dense_operator(torch.block_diag(*strong) + weak)
    assert iterations(A, block_jacobi(hidden(A.matrix), 2, probes=None)) <= 2
    # four probes mistake some of the weak couplings for strong ones: one iteration more
    assert iterations(A, block_jacobi(hidden(A.matrix), 2, probes=4, generator=seeded())) <= 3
    assert iterations(A, jacobi(A)) >= 30
    assert iterations(A) >= 80


def test_a_block_of_zeros_is_mended():
    M = block_jacobi(torch.diag(torch.tensor([2.0, 2.0, 0.0, 0.0])), 2, probes=None)
    rounding = 20 * torch.finfo(torch.float32).eps
    expected = torch.tensor([0.5, 0.5, 0.5 / rounding, 0.5 / rounding])
    torch.testing.assert_close(M.to_dense(), torch.diag(expected))
