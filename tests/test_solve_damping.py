# SPDX-License-Identifier: Apache-2.0
"""`solve` with damping: many shifts at once, structure, penalties."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, ShapeError
from hesse.krylov import LSMR, MultiShiftCG, solve
from hesse.operators import (
    dense_operator,
    identity_operator,
)
from hesse.testing import CountingOperator, symmetric_matrix
from tests.linear_systems import DEFINITE, DOUBLE, N, hidden, normal


def test_all_dampings_for_the_products_of_one():
    M, b, shifts = symmetric_matrix(DEFINITE), normal(N, seed=13), [0.0, 0.1, 1.0, 10.0]
    A = CountingOperator(hidden(M, symmetric=True))
    one = solve(A, b, rtol=1e-9).iterations
    A.products = 0
    solution = solve(A, b, MultiShiftCG(shifts), rtol=1e-9)
    assert solution.method == "multi-shift-cg"
    assert solution.converged
    assert solution.products == A.products <= one + 1 + len(shifts)
    for column, s in zip(solution.x.T, shifts, strict=True):
        exact = torch.linalg.solve(M + s * torch.eye(N, dtype=DOUBLE), b)
        torch.testing.assert_close(column, exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("method", ["auto", "cg", "minres", "lsmr", "gmres", "direct", "block-cg"])
def test_damping_is_a_multiple_of_the_identity(method):
    M, b = symmetric_matrix(DEFINITE), normal(N, seed=13)
    exact = torch.linalg.solve(M + 0.7 * torch.eye(N, dtype=DOUBLE), b)
    A = dense_operator(M) if method == "direct" else hidden(M, symmetric=True)
    solution = solve(A, b, method, damping=0.7, rtol=1e-10)
    assert solution.converged
    torch.testing.assert_close(solution.x, exact, rtol=1e-7, atol=1e-9)
    same = solve(A + 0.7 * identity_operator(N), b, method, rtol=1e-10)
    assert solution.products == same.products
    assert torch.equal(solution.x, same.x)


def test_damping_of_a_matrix_that_is_not_symmetric():
    M, b = normal(N, N, seed=3), normal(N, seed=13)
    exact = torch.linalg.solve(M + 20.0 * torch.eye(N, dtype=DOUBLE), b)
    torch.testing.assert_close(solve(M, b, damping=20).x, exact)
    torch.testing.assert_close(
        solve(hidden(M, symmetric=False), b, damping=20.0, rtol=1e-12).x, exact
    )


def test_damping_that_does_not_fit_is_refused():
    b = normal(30, seed=15)
    with pytest.raises(ShapeError, match=r"LSMR\(tikhonov=c\)"):
        solve(normal(30, 12, seed=14), b, damping=0.7)
    for wrong in (-1.0, math.nan, math.inf, "a", torch.ones(2)):
        with pytest.raises(ArgumentError, match=r"A \+ c \* I"):
            solve(torch.eye(30, dtype=DOUBLE), b, damping=wrong)


def test_least_squares_with_a_penalty():
    M, b = normal(30, 12, seed=14), normal(30, seed=15)
    solution = solve(M, b, LSMR(tikhonov=0.7), rtol=1e-12)
    exact = torch.linalg.solve(M.T @ M + 0.7 * torch.eye(12, dtype=DOUBLE), M.T @ b)
    assert solution.method == "lsmr"
    torch.testing.assert_close(solution.x, exact)
