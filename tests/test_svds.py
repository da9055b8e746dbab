"""Singular values of rectangular operators."""

import pytest
import torch

from hesse.errors import ArgumentError, Status
from hesse.krylov import Lanczos, svds
from hesse.operators import dense_operator
from hesse.testing import CountingOperator

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (5, 3, 3), (3, 5, 2), (90, 60, 4), (60, 200, 5)]
)
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
def test_agrees_with_a_dense_decomposition(m, n, k, dtype):
    M = torch.randn(m, n, generator=seeded(m), dtype=dtype)
    A = CountingOperator(dense_operator(M))
    U, S, V = triplets = svds(A, k, generator=seeded())
    exact = torch.linalg.svdvals(M.double())
    rtol = 1e-10 if dtype == DOUBLE else 1e-5
    torch.testing.assert_close(S, exact[:k], rtol=rtol, atol=0)
    assert triplets.converged.all()
    assert triplets.products == A.products
    assert (U.shape, V.shape) == ((m, k), (n, k))
    eye = torch.eye(k, dtype=DOUBLE)
    for vectors in (U.double(), V.double()):
        torch.testing.assert_close(vectors.T @ vectors, eye, rtol=0, atol=1e3 * rtol)
    left = (M.double() @ V.double() - U.double() * S).norm(dim=0)
    right = (M.double().T @ U.double() - V.double() * S).norm(dim=0)
    assert (torch.maximum(left, right) <= triplets.residuals).all()


@pytest.mark.slow
def test_the_bound_holds_whether_or_not_it_converged():
    for seed in range(50):
        M = torch.randn(40, 25, generator=seeded(seed), dtype=DOUBLE)
        triplets = svds(
            M, 3, method=Lanczos(basis_size=6), max_products=10 + 2 * seed, generator=seeded(seed)
        )
        distance = (torch.linalg.svdvals(M)[:, None] - triplets.S).abs().amin(dim=0)
        assert (distance <= triplets.residuals).all()


def test_a_rank_deficient_operator_and_zero():
    u, v = torch.ones(6, dtype=DOUBLE), torch.arange(1.0, 5.0, dtype=DOUBLE)
    triplets = svds(torch.outer(u, v), 2, generator=seeded())
    exact = torch.tensor([float(u.norm() * v.norm()), 0.0], dtype=DOUBLE)
    # sqrt(eps) of the largest: squares are all that the products know
    torch.testing.assert_close(triplets.S, exact, rtol=1e-10, atol=1e-6)
    assert ((triplets.S - exact).abs() <= triplets.residuals).all()
    nothing = svds(torch.zeros(4, 3), 1, generator=seeded())
    assert float(nothing.S[0]) == 0.0
    assert torch.isfinite(nothing.U).all()


def test_limits_and_errors():
    M = torch.randn(100, 80, generator=seeded(3))
    few = svds(M, 2, max_products=16, generator=seeded())
    assert few.status is Status.MAX_PRODUCTS
    assert few.products <= 16
    with pytest.raises(ArgumentError, match="min"):
        svds(M, 81)


def test_it_says_how_likely_a_missed_value_is():
    M = torch.diag(torch.cat([torch.linspace(0.0, 1.0, 97), torch.full((3,), 2.0)]).double())
    triplets = svds(M, 3, generator=seeded(), rtol=1e-6)
    assert 0.0 < triplets["unseen"] <= 0.05
    assert svds(M, 3, max_products=16, generator=seeded()).unseen == 1.0
    assert svds(M, 3, method=Lanczos(search_missed=False), generator=seeded()).unseen is None


def test_what_drowns_in_rounding_is_not_called_converged():
    small = torch.diag(torch.tensor([1.0, *torch.linspace(4e-5, 1e-5, 80).tolist()]))
    triplets = svds(small, 2, generator=seeded())
    assert triplets.converged.tolist() == [True, False]
    assert triplets.status is Status.STAGNATED


def test_what_drowns_in_squares_is_found_where_the_matrix_is_small():
    values = torch.tensor([1.0, *torch.linspace(4e-5, 1e-5, 20).tolist()])
    A = CountingOperator(dense_operator(torch.diag(values)))
    triplets = svds(A, 2, generator=seeded())
    assert triplets.status is Status.CONVERGED
    assert triplets.unseen == 0.0  # all were computed
    torch.testing.assert_close(triplets.S, values[:2].double(), rtol=0, atol=1e-7)
    assert triplets.products == A.products


@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (40, 25), (25, 40), (5, 5)])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_both_sides_are_orthonormal_whatever_the_rank(shape, rank, dtype):
    (m, n), k = shape, 4
    left, right = (torch.randn(s, rank, generator=seeded(s), dtype=DOUBLE) for s in (m, n))
    M = (left @ right.T).to(dtype)
    U, S, V = triplets = svds(M, k, generator=seeded())
    eye, rounding = torch.eye(k, dtype=DOUBLE), 20 * torch.finfo(dtype).eps
    for vectors in (U.double(), V.double()):
        torch.testing.assert_close(vectors.T @ vectors, eye, rtol=0, atol=rounding)
    exact = torch.linalg.svdvals(M.double())[:k]
    assert ((S - exact).abs() <= triplets.residuals).all()
    errors = (M.double() @ V.double() - U.double() * S).norm(dim=0)
    assert (errors <= triplets.residuals).all()
