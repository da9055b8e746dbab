# SPDX-License-Identifier: Apache-2.0
"""Preconditioners: positive definite whatever A is, worth their products, as dear as they say."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import (
    ArgumentError,
    DtypeError,
    HesseError,
    NonFiniteError,
    OperatorError,
    ShapeError,
)
from hesse.krylov import solve
from hesse.krylov.preconditioners import (
    Pairs,
    as_preconditioner,
    block_jacobi,
    jacobi,
    nystrom,
    pivoted_cholesky,
    quasi_newton,
)
from hesse.krylov.preconditioners.deflation import deflation
from hesse.operators import (
    block_diagonal_operator,
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
    low_rank_operator,
)
from hesse.testing import CountingOperator, check_operator, symmetric_matrix
from hesse.vectors.space import Space

DOUBLE = torch.float64
N = 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(seed, n=N):
    return torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE))[0]


def decaying(n=N, dtype=DOUBLE):
    """Eigenvalues 2^-k: n of them, most of them negligible."""
    return symmetric_matrix(0.5 ** torch.arange(n, dtype=DOUBLE), dtype=dtype)


def hidden(matrix):
    """The matrix as a function: no diagonal, no inverse, only products; and their count."""
    n = len(matrix)
    return CountingOperator(
        function_operator(lambda v: matrix @ v, n, symmetric=True, dtype=matrix.dtype)
    )


def damped(A, damping):
    return A + damping * identity_operator(A.shape[0])


def iterations(A, M=None, rtol=1e-8):
    b = torch.randn(A.shape[0], generator=seeded(9), dtype=DOUBLE).to(A.dtype)
    solution = solve(A, b, "cg", preconditioner=M, rtol=rtol)
    assert solution.converged
    return solution.iterations


def pairs_of(matrix, count, seed=0):
    S = torch.randn(count, len(matrix), generator=seeded(seed), dtype=DOUBLE).to(matrix.dtype)
    return [(s, matrix @ s) for s in S]


MAKERS = {
    "jacobi": lambda A: jacobi(A, generator=seeded()),
    "block-jacobi": lambda A: block_jacobi(A, 8, probes=2, generator=seeded()),
    "exact block-jacobi": lambda A: block_jacobi(A, 7, probes=None),
    "nystrom": lambda A: nystrom(A, 6, generator=seeded()),
    "adaptive nystrom": lambda A: nystrom(A, 2, max_rank=30, damping=1e-3, generator=seeded()),
    "pivoted-cholesky": lambda A: pivoted_cholesky(A, 6, diagonal=A.to_dense().diagonal()),
    "quasi-newton": lambda A: quasi_newton(pairs_of(A.to_dense(), 6)),
}


# --------------------------------------------------------------------------------------------------
# All of them


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("maker", MAKERS)
@given(st.integers(0, 99), st.floats(0.0, 6.0), st.booleans())
@settings(max_examples=8)
def test_each_is_symmetric_positive_definite(maker, dtype, seed, decades, scaled):
    """Whatever the condition of A, to the limits of float32, and the scales of its variables."""
    matrix = symmetric_matrix(torch.logspace(0, -decades, N), seed)
    if scaled:
        scales = torch.logspace(0, 2, N, dtype=DOUBLE)
        matrix = scales[:, None] * matrix * scales
    A = dense_operator(matrix.to(dtype))
    M = MAKERS[maker](hidden(A.matrix))
    assert M.symmetric
    check_operator(M)
    values = torch.linalg.eigvalsh(((M.to_dense() + M.to_dense().T) / 2).double())
    assert float(values[0]) > 0.0


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "quasi-newton"])
def test_each_takes_trees_and_saves_iterations(maker):
    """Some large eigenvalues and variables of different scales: something for everybody."""
    scales = torch.logspace(0, 1.5, N, dtype=DOUBLE)
    matrix = scales[:, None] * (torch.eye(N, dtype=DOUBLE) + 100 * decaying()) * scales
    tree = {"a": torch.ones(10, dtype=DOUBLE), "b": torch.ones(5, 6, dtype=DOUBLE)}
    A = dense_operator(matrix) + 0.02 * diagonal_operator(tree)
    M = MAKERS[maker](A)
    torch.testing.assert_close((M @ tree)["b"].reshape(-1), M.to_dense()[10:].sum(dim=1))
    # 90 without; from 19 (adaptive Nystrom) to 74 (Nystrom of rank 6) with.
    assert iterations(A, M) <= 0.85 * iterations(A)


@pytest.mark.parametrize("maker", MAKERS)
def test_each_says_what_it_cost(maker):
    A = hidden(symmetric_matrix(torch.logspace(0, -2, N)))
    dense = A.to_dense()
    A.products = 0
    counted = {
        "jacobi": lambda: jacobi(A, probes=5),
        "block-jacobi": lambda: block_jacobi(A, 8, probes=3),
        "exact block-jacobi": lambda: block_jacobi(A, 8, probes=None),
        "nystrom": lambda: nystrom(A, 6),
        "adaptive nystrom": lambda: nystrom(A, 2, max_rank=30, damping=1e-3),
        "pivoted-cholesky": lambda: pivoted_cholesky(A, 6, diagonal=dense.diagonal()),
        "quasi-newton": lambda: quasi_newton(pairs_of(dense, 6)),
    }
    expected = {
        "jacobi": 5,
        "block-jacobi": 24,
        "exact block-jacobi": N,
        "nystrom": 6,
        "adaptive nystrom": 30,
        "pivoted-cholesky": 6,
        "quasi-newton": 0,
    }
    M = counted[maker]()
    assert M.products == A.products == expected[maker]


@pytest.mark.parametrize("maker", ["jacobi", "block-jacobi", "exact block-jacobi"])
def test_diagonals_of_indefinite_matrices_count_in_absolute_value(maker):
    values = torch.linspace(-1.0, 2.0, N)
    M = MAKERS[maker](hidden(symmetric_matrix(values)))
    assert float(torch.linalg.eigvalsh(M.to_dense())[0]) > 0.0


@pytest.mark.parametrize("maker", ["nystrom", "adaptive nystrom", "pivoted-cholesky"])
def test_an_indefinite_matrix_is_refused_where_it_shows(maker):
    A = hidden(symmetric_matrix(torch.linspace(-2.0, 1.0, N)))
    with pytest.raises(OperatorError, match="positive semi-definite"):
        MAKERS[maker](A)


@pytest.mark.parametrize("maker", [name for name in MAKERS if name != "quasi-newton"])
def test_what_is_not_symmetric_not_finite_or_zero_is_refused(maker):
    with pytest.raises(OperatorError, match="symmetric"):
        MAKERS[maker](dense_operator(torch.ones(3, 3).triu()))
    broken = function_operator(lambda v: v * math.nan, N, symmetric=True)
    with pytest.raises((NonFiniteError, OperatorError), match="finite"):
        {**MAKERS, "pivoted-cholesky": lambda A: pivoted_cholesky(A, 2, diagonal=torch.ones(N))}[
            maker
        ](broken)
    if maker != "adaptive nystrom":  # which is told of a damping
        with pytest.raises(OperatorError, match=r"zero|semi-definite"):
            MAKERS[maker](hidden(torch.zeros(N, N)))


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


# --------------------------------------------------------------------------------------------------
# The choice


def test_a_preconditioner_is_chosen_by_name():
    matrix = symmetric_matrix(torch.logspace(0, -2, N))
    A = dense_operator(matrix)
    expected = {
        "jacobi": jacobi(A),
        "block-jacobi": block_jacobi(A, generator=seeded()),
        "nystrom": nystrom(A, generator=seeded()),
        "pivoted-cholesky": pivoted_cholesky(A),
    }
    for name, M in expected.items():
        chosen = as_preconditioner(name, A, seeded())
        assert chosen.products == M.products
        torch.testing.assert_close(chosen.to_dense(), M.to_dense())
    rank = as_preconditioner("nystrom", damped(hidden(matrix), 1e-6), seeded())
    assert rank.products == N


def test_a_preconditioner_that_is_given_costs_nothing_more():
    A = diagonal_operator({"a": torch.ones(2, dtype=DOUBLE)})
    assert as_preconditioner(None, A) is None
    for given_one in (
        torch.eye(2, dtype=DOUBLE),
        identity_operator(2),
        CountingOperator(A),
        jacobi(A),
    ):
        M = as_preconditioner(given_one, A)
        assert M.products == 0
        torch.testing.assert_close(M @ torch.ones(2, dtype=DOUBLE), torch.ones(2, dtype=DOUBLE))
    spent = nystrom(A, 2, generator=seeded())
    assert spent.products == 2
    assert as_preconditioner(spent, A).products == 0


@pytest.mark.parametrize(
    ("error", "given_one", "words"),
    [
        (ArgumentError, "quasi-newton", "quasi_newton\\(pairs\\)"),
        (ArgumentError, "ilu", "'nystrom'"),
        (ShapeError, torch.eye(3), "shape"),
        (DtypeError, torch.eye(2).double(), "dtype"),
        (OperatorError, 3.0, "matrix"),
    ],
)
def test_what_is_no_preconditioner_is_refused(error, given_one, words):
    with pytest.raises(error, match=words) as caught:
        as_preconditioner(given_one, dense_operator(torch.eye(2)))
    assert isinstance(caught.value, HesseError)


@pytest.mark.parametrize(
    "call",
    [
        lambda A: jacobi(hidden(A.matrix), probes=1),
        lambda A: block_jacobi(A, 0),
        lambda A: nystrom(A, 0),
        lambda A: nystrom(A, damping=-1.0),
        lambda A: pivoted_cholesky(A, 0),
        lambda A: quasi_newton(pairs_of(A.matrix, 2), memory=0),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(ArgumentError):
        call(dense_operator(torch.eye(3)))


def test_pairs_of_a_run_help_the_next_one_and_stay_few():
    d = torch.cat([torch.logspace(0, 4, 12, dtype=DOUBLE), torch.ones(60, dtype=DOUBLE)])
    A, pairs = diagonal_operator(d), Pairs(most=8)
    b = torch.randn(72, generator=seeded(1), dtype=DOUBLE)
    first = solve(A, b, "cg", rtol=1e-10, callback=pairs)
    assert 4 <= len(pairs) <= 8 < first.iterations
    for s, y in pairs:
        torch.testing.assert_close(y, d * s, rtol=0, atol=1e-9 * float(y.norm()))
    again = torch.randn(72, generator=seeded(2), dtype=DOUBLE)
    plain = solve(A, again, "cg", rtol=1e-4)
    assert (
        solve(A, again, "cg", preconditioner=quasi_newton(pairs), rtol=1e-4).iterations
        < plain.iterations
    )
