# SPDX-License-Identifier: Apache-2.0
"""Preconditioners of low rank: Nystrom, pivoted Cholesky, quasi-Newton."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import (
    ArgumentError,
    NonFiniteError,
    OperatorError,
    ShapeError,
)
from hesse.krylov import solve
from hesse.krylov.preconditioners import (
    nystrom,
    pivoted_cholesky,
    quasi_newton,
)
from hesse.krylov.preconditioners.deflation import deflation
from hesse.operators import (
    dense_operator,
    low_rank_operator,
)
from hesse.testing import CountingOperator, symmetric_matrix
from hesse.vectors.space import Space
from tests.preconditioned_matrices import (
    DOUBLE,
    N,
    damped,
    decaying,
    hidden,
    iterations,
    pairs_of,
    rotation,
    seeded,
)

# --------------------------------------------------------------------------------------------------
# Nystrom


@given(st.integers(0, 99), st.floats(1e-6, 1.0))
@settings(max_examples=15)
def test_nystrom_of_full_rank_leaves_nothing_to_do(seed, damping):
    matrix = symmetric_matrix(torch.logspace(0, -3, 12), seed)
    M = nystrom(hidden(matrix), 12, damping=damping, generator=seeded(seed))
    A = damped(dense_operator(matrix), damping)
    assert iterations(A, M) <= 2
    exact = (1e-3 + damping) * torch.linalg.inv(A.to_dense())
    torch.testing.assert_close(M.to_dense(), exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_nystrom_removes_large_eigenvalues(dtype):
    damping, rtol = (1e-3, 1e-4) if dtype == torch.float32 else (1e-4, 1e-8)
    G = dense_operator(decaying(dtype=dtype))
    A = damped(G, damping)
    assert iterations(A, rtol=rtol) >= 25  # 29 in float32, 42 in float64
    for rank, most in ((8, 24), (12, 15), (16, 8)):
        M = nystrom(G, rank, damping=damping, generator=seeded())
        assert M.products == rank
        assert iterations(A, M, rtol=rtol) <= most


def test_nystrom_takes_a_damped_operator_apart():
    """Products of G are taken, not of G + c I; the same M as with the damping by name."""
    G = hidden(decaying())
    M = nystrom(damped(G, 1e-4), 16, generator=seeded())
    assert G.products == 16
    expected = nystrom(hidden(decaying()), 16, damping=1e-4, generator=seeded())
    torch.testing.assert_close(M.to_dense(), expected.to_dense())
    assert iterations(damped(G, 1e-4), M) <= 7


def test_nystrom_works_for_a_damped_operator_that_does_not_say_so():
    A = hidden(decaying() + 1e-4 * torch.eye(N, dtype=DOUBLE))
    # Half as many as without; a third of those again where the damping is known.
    assert iterations(A, nystrom(A, 16, generator=seeded())) <= 16 < 40 <= iterations(A)


def test_nystrom_doubles_its_rank_until_the_damping_covers_the_rest():
    def products(damping, max_rank):
        A = hidden(decaying())
        M = nystrom(A, 3, max_rank=max_rank, damping=damping, generator=seeded())
        assert M.products == A.products
        return M.products

    assert products(1.0, 30) == 3
    assert products(1e-2, 30) == 12  # lambda_6 is near 2^-6
    assert products(1e-4, 30) == 24  # lambda_12 near 2^-12
    assert products(1e-4, 7) == 7
    assert products(1e-15, 100) == N
    assert products(0.0, 30) == 3  # nothing to measure the rest by


def test_nystrom_of_a_matrix_of_low_rank_finds_it():
    U = rotation(0)[:, :3]
    A = low_rank_operator(U, torch.tensor([3.0, 2.0, 1.0], dtype=DOUBLE))
    M = nystrom(A, 3, damping=0.5, generator=seeded())
    exact = 1.5 * torch.linalg.inv(damped(A, 0.5).to_dense())
    middle = torch.eye(N, dtype=DOUBLE) - U @ U.T
    torch.testing.assert_close(U.T @ M.to_dense() @ U, U.T @ exact @ U)
    torch.testing.assert_close(middle @ M.to_dense() @ middle, middle)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_nystrom_sees_that_nothing_is_left(dtype):
    """The shift against rounding is taken off again: a zero eigenvalue is below any damping."""
    A = low_rank_operator(rotation(0)[:, :3].to(dtype), torch.tensor([3, 2, 1]).to(dtype))
    damping = torch.finfo(dtype).eps
    M = nystrom(A, 6, max_rank=24, damping=damping, generator=seeded())
    assert M.products == 6


def test_nystrom_by_doubling_is_as_good_as_at_once():
    matrix = symmetric_matrix(torch.logspace(0, -8, N))
    M = nystrom(matrix, 5, max_rank=N, damping=1e-10, generator=seeded())
    assert M.products == N
    exact = (1e-8 + 1e-10) * torch.linalg.inv(matrix + 1e-10 * torch.eye(N, dtype=DOUBLE))
    # Eigenvalues of 1e-8 with an error of eps sqrt(n), the shift.
    torch.testing.assert_close(M.to_dense(), exact, rtol=1e-6, atol=1e-6)


def test_nystrom_takes_a_negative_eigenvalue_of_rounding_for_zero():
    values = torch.linspace(0.0, 1.0, N)
    values[0] = -1e-10
    M = nystrom(symmetric_matrix(values), N, damping=0.1, generator=seeded())
    exact = 0.1 * torch.linalg.inv(symmetric_matrix(values) + 0.1 * torch.eye(N, dtype=DOUBLE))
    torch.testing.assert_close(M.to_dense(), exact)


@given(st.integers(0, 999), st.integers(1, 6))
@settings(max_examples=25)
def test_deflation_stays_definite_beyond_rounding(seed, rank):
    """Eigenvalues 1e12 times the level in float32: their inverses are below the noise of I."""
    U = rotation(seed)[:, :rank].float()
    M = deflation(Space.flat(N), U, torch.full((rank,), 1e12), 1.0)
    for u in U.T.contiguous():
        assert M._curvature(u) > 0.0


def test_nystrom_with_a_shift_it_cannot_take_off():
    """G - c I may be definite without G - c I saying so: it is sketched as it is."""
    A = damped(dense_operator(symmetric_matrix(torch.linspace(2.0, 3.0, N))), -1.0)
    M = nystrom(A, N, generator=seeded())
    torch.testing.assert_close(M.to_dense(), torch.linalg.inv(A.to_dense()))


# --------------------------------------------------------------------------------------------------
# Pivoted Cholesky


def test_pivoted_cholesky_of_full_rank_leaves_nothing_to_do():
    matrix = symmetric_matrix(torch.logspace(0, -3, 12))
    M = pivoted_cholesky(hidden(matrix), 12, diagonal=matrix.diagonal(), damping=0.1)
    A = damped(dense_operator(matrix), 0.1)
    torch.testing.assert_close(M.to_dense(), 0.1 * torch.linalg.inv(A.to_dense()))


def test_pivoted_cholesky_removes_large_eigenvalues():
    x = torch.linspace(0.0, 1.0, N, dtype=DOUBLE)
    kernel = torch.exp(-((x[:, None] - x) ** 2) / 0.08)  # what it is mostly used for
    A = damped(dense_operator(kernel), 1e-3)
    M = pivoted_cholesky(A, 8)
    assert M.products == 8
    assert iterations(A, M) <= 8
    assert iterations(A, pivoted_cholesky(A, 12)) <= 3
    assert iterations(A) >= 25


@given(st.integers(0, 99), st.integers(1, 10), st.sampled_from([0.0, 0.3]))
@settings(max_examples=25)
def test_pivoted_cholesky_is_the_textbook_elimination(seed, rank, damping):
    matrix = symmetric_matrix(torch.logspace(0, -2, 12), seed)
    rest = matrix.clone()
    for _ in range(rank):
        i = int(rest.diagonal().argmax())
        rest = rest - torch.outer(rest[i], rest[i]) / rest[i, i]
    mu = damping + rest.trace() / 12
    exact = mu * torch.linalg.inv(matrix - rest + mu * torch.eye(12, dtype=DOUBLE))
    M = pivoted_cholesky(hidden(matrix), rank, diagonal=matrix.diagonal(), damping=damping)
    torch.testing.assert_close(M.to_dense(), exact)


def test_pivoted_cholesky_ends_where_nothing_remains():
    U = torch.randn(N, 3, dtype=DOUBLE, generator=seeded())
    G = CountingOperator(low_rank_operator(U, torch.ones(3, dtype=DOUBLE)))
    M = pivoted_cholesky(G, 20, diagonal=(U**2).sum(1), damping=0.5)
    assert M.products == G.products == 3
    exact = 0.5 * torch.linalg.inv((damped(G, 0.5)).to_dense())
    torch.testing.assert_close(M.to_dense(), exact)


def test_pivoted_cholesky_needs_a_diagonal():
    with pytest.raises(OperatorError, match="diagonal"):
        pivoted_cholesky(hidden(decaying()))


# --------------------------------------------------------------------------------------------------
# Quasi-Newton


def bfgs(pairs):
    """The dense BFGS recursion."""
    s, y = pairs[-1]
    eye = torch.eye(len(s), dtype=s.dtype)
    M = (s @ y) / (y @ y) * eye
    for s, y in pairs:
        left = eye - torch.outer(s, y) / (s @ y)
        M = left @ M @ left.T + torch.outer(s, s) / (s @ y)
    return M


@given(st.integers(0, 99), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=25)
def test_the_two_loops_are_the_recursion(seed, count, memory):
    pairs = pairs_of(symmetric_matrix(torch.linspace(1.0, 3.0, 8), seed), count, seed)
    M = quasi_newton(pairs, memory)
    if count <= memory:
        torch.testing.assert_close(M.to_dense(), bfgs(pairs))
    s, y = pairs[-1]
    torch.testing.assert_close(M @ y, s)  # the secant condition of the latest pair


def test_pairs_are_spread_evenly_over_the_run():
    pairs = pairs_of(symmetric_matrix(torch.linspace(1.0, 3.0, 8)), 10)
    chosen = [pairs[i] for i in (0, 3, 6, 9)]
    torch.testing.assert_close(quasi_newton(pairs, 4).to_dense(), bfgs(chosen))


def test_a_run_of_conjugate_gradients_preconditions_the_next():
    A = damped(dense_operator(decaying()), 1e-4)
    seen = []
    solve(
        A,
        torch.randn(N, generator=seeded(), dtype=DOUBLE),
        "cg",
        rtol=1e-8,
        callback=lambda state: seen.append((state.x.clone(), state.residual.clone())),
    )
    pairs = [(x - x0, r0 - r) for (x0, r0), (x, r) in pairwise(seen)]
    assert iterations(A, quasi_newton(pairs)) <= 0.6 * iterations(A)


def test_pairs_of_negative_curvature_are_left_out():
    good = pairs_of(symmetric_matrix(torch.linspace(1.0, 3.0, 8)), 3)
    bad = [(s, -y) for s, y in good]
    torch.testing.assert_close(quasi_newton(bad + good).to_dense(), bfgs(good))
    with pytest.raises(OperatorError, match="s'y"):
        quasi_newton(bad)


def test_pairs_may_be_trees():
    space = {"a": torch.ones(2), "b": torch.ones(1)}
    M = quasi_newton([(space, {"a": 2 * space["a"], "b": 2 * space["b"]})])
    torch.testing.assert_close((M @ space)["a"], torch.full((2,), 0.5))


def test_pairs_that_are_none_are_refused():
    with pytest.raises(ArgumentError, match="at least one pair"):
        quasi_newton([])
    with pytest.raises(NonFiniteError):
        quasi_newton([(torch.ones(2), torch.tensor([1.0, math.nan]))])
    with pytest.raises(ShapeError):
        quasi_newton([(torch.ones(2), torch.ones(3))])
