# SPDX-License-Identifier: Apache-2.0
"""What structure computes is computed once, and again after a matrix was written to."""

from __future__ import annotations

import pytest
import torch

import hesse
from hesse.operators import LinearOperator
from tests.structured_matrices import DOUBLE, I, N, close, definite, factors, normal


class Asked(LinearOperator):
    """A diagonal matrix that counts how often its inverse is asked for."""

    def __init__(self, d: torch.Tensor) -> None:
        super().__init__(hesse.Space.of(d), symmetric=True)
        self.d, self.asked = d, 0

    def _matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.d * v

    def _inverse(self) -> LinearOperator:
        self.asked += 1
        return hesse.diagonal_operator(1.0 / self.d)


@pytest.mark.parametrize("method", ["auto", "direct"])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_a_solve_asks_once_for_the_inverse(method, columns):
    A = Asked(torch.arange(1.0, N + 1.0, dtype=DOUBLE))
    b = normal(N, *columns)
    close(hesse.solve(A, b, method).x, torch.linalg.solve(torch.diag(A.d), b))
    assert A.asked == 1


def test_a_sum_adds_structured_operators_up_once(monkeypatch):
    S = hesse.kronecker_operator(definite(2), definite(4))
    A, calls = S + 0.1 * I, []
    added = type(S)._plus_diagonal
    monkeypatch.setattr(type(S), "_plus_diagonal", lambda S, D: calls.append(1) or added(S, D))
    for _ in range(3):
        hesse.solve(A, normal(N)), hesse.logdet(A), hesse.trace(A), hesse.norm(A)
    assert len(calls) == 1


def test_eigenvectors_of_factors_are_computed_once(monkeypatch):
    taken = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr("torch.linalg.eigh", lambda M: taken.append(len(M)) or eigh(M))
    monkeypatch.setattr("torch.linalg.eigvalsh", None)
    A = hesse.kronecker_operator(definite(2), definite(4))
    for c in (0.0, 0.1, 1.0):
        B = A + c * I
        hesse.solve(B, normal(N)), hesse.norm(B), hesse.logdet(B), hesse.sample_normal(B)
    hesse.norm(A), hesse.count_eigenvalues(A, high=1.0), hesse.matrix_function("sqrt", A, normal(N))
    assert taken == [2, 4]


@pytest.mark.parametrize("kind", ["dense", "Kronecker", "blocks", "low rank added"])
def test_a_dense_matrix_in_an_operator_may_be_written_to(kind):
    M, small = definite(), definite(2)
    make = {
        "dense": lambda: hesse.dense_operator(M) + 0.1 * I,
        "Kronecker": lambda: 2.0 * hesse.kronecker_operator(small, definite(4)) + 0.1 * I,
        "blocks": lambda: hesse.block_diagonal_operator([small, definite(6)]) + 0.1 * I,
        "low rank added": lambda: (
            hesse.kronecker_operator(small, definite(4)) + hesse.low_rank_operator(*factors(0, 2))
        ),
    }
    A = make[kind]()
    for _ in range(2):
        exact = torch.linalg.inv(A.to_dense())
        close(hesse.inverse_operator(A).to_dense(), exact)
        close(torch.tensor(hesse.logdet(A).value, dtype=DOUBLE), -torch.logdet(exact))
        M.mul_(3.0), small.mul_(3.0)
