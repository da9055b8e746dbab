# SPDX-License-Identifier: Apache-2.0
"""Preconditioners: positive definite whatever A is, worth their products, as dear as they say."""

import math

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
from hesse.operators import (
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
)
from hesse.testing import CountingOperator, check_operator, symmetric_matrix
from tests.preconditioned_matrices import (
    DOUBLE,
    N,
    damped,
    decaying,
    hidden,
    iterations,
    pairs_of,
    seeded,
)

MAKERS = {
    "jacobi": lambda A: jacobi(A, generator=seeded()),
    "block-jacobi": lambda A: block_jacobi(A, 8, probes=2, generator=seeded()),
    "exact block-jacobi": lambda A: block_jacobi(A, 7, probes=None),
    "nystrom": lambda A: nystrom(A, 8, generator=seeded()),
    "adaptive nystrom": lambda A: nystrom(A, 2, max_rank=30, damping=1e-3, generator=seeded()),
    "pivoted-cholesky": lambda A: pivoted_cholesky(A, 6, diagonal=A.to_dense().diagonal()),
    "quasi-newton": lambda A: quasi_newton(pairs_of(A.to_dense(), 6)),
}


# --------------------------------------------------------------------------------------------------
# All of them


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(8)
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
    # 86 to 90 without, by the rounding of the machine; from 19 (adaptive) to 63 (Nystrom) with.
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
