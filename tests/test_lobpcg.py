"""LOBPCG: preconditioned and generalised eigenproblems."""

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, Status
from hesse.krylov import LOBPCG, eigsh
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, PeakMemory

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def positive(n, seed):
    R = torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE)
    return R @ R.T / n + torch.eye(n, dtype=DOUBLE)


def generalised(A, B):
    """Eigenvalues of A u = theta B u by Cholesky."""
    L = torch.linalg.cholesky(B)
    half = torch.linalg.solve_triangular(L, A, upper=False)
    return torch.linalg.eigvalsh(torch.linalg.solve_triangular(L, half.T, upper=False))


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("which", ["SA", "LA"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 3), (60, 4), (150, 1)])
def test_agrees_with_a_dense_solver(n, k, which):
    A = CountingOperator(dense_operator(positive(n, n)))
    pairs = eigsh(A, k, which, method="lobpcg", generator=seeded())
    exact = torch.linalg.eigvalsh(A.A.matrix)
    torch.testing.assert_close(pairs.values, exact[:k] if which == "SA" else exact[-k:])
    assert pairs.converged.all()
    assert pairs.status is Status.CONVERGED
    assert pairs.products == A.products


@pytest.mark.parametrize("which", ["SA", "LA"])
def test_the_generalised_problem(which):
    A, B = positive(80, 1) - 3 * torch.eye(80, dtype=DOUBLE), positive(80, 2)
    pairs = eigsh(A, 3, which, B=B, generator=seeded())
    exact = generalised(A, B)
    torch.testing.assert_close(pairs.values, exact[:3] if which == "SA" else exact[-3:])
    U = pairs.vectors
    torch.testing.assert_close(U.T @ B @ U, torch.eye(3, dtype=DOUBLE), rtol=0, atol=1e-8)
    residual = (A @ U - B @ U * pairs.values).norm(dim=0)
    assert (residual <= pairs.residuals).all()


def test_a_preconditioner_saves_products():
    n = 1000
    d = torch.arange(1, n + 1, dtype=DOUBLE) ** 2
    nearly = d * (1 + 0.3 * torch.rand(n, generator=seeded(1), dtype=DOUBLE))
    plain = eigsh(diagonal_operator(d), 4, "SA", method="lobpcg", max_products=500)
    assert plain.status is Status.MAX_PRODUCTS
    helped = eigsh(
        diagonal_operator(d),
        4,
        "SA",
        method=LOBPCG(preconditioner=diagonal_operator(1 / nearly)),
        generator=seeded(),
    )
    torch.testing.assert_close(helped.values, d[:4])
    assert helped.products < 150
    named = eigsh(
        diagonal_operator(d), 4, "SA", method=LOBPCG(preconditioner="jacobi"), generator=seeded()
    )
    torch.testing.assert_close(named.values, d[:4])


def test_a_block_of_earlier_vectors_is_a_good_start():
    M = positive(200, 4)
    E = 1e-4 * positive(200, 5)
    before = eigsh(M, 3, method="lobpcg", generator=seeded())
    cold = eigsh(M + E, 3, method="lobpcg", generator=seeded())
    warm = eigsh(M + E, 3, method="lobpcg", v0=before.vectors, generator=seeded())
    torch.testing.assert_close(warm.values, cold.values)
    assert warm.products < 0.7 * cold.products


def test_single_precision_and_repeated_eigenvalues():
    d = torch.tensor([1.0, 1.0, 1.0, 2.0, *torch.linspace(3, 9, 50).tolist()])
    pairs = eigsh(diagonal_operator(d), 4, "SA", method="lobpcg", generator=seeded())
    torch.testing.assert_close(pairs.values, d[:4].double(), rtol=1e-5, atol=0)


def test_ctrl_c_and_limits_return_the_best_so_far():
    def interrupt(state):
        if state.products > 20:
            raise KeyboardInterrupt

    A = dense_operator(positive(200, 6))
    pairs = eigsh(A, 2, "SA", method="lobpcg", callback=interrupt, generator=seeded())
    assert pairs.status is Status.INTERRUPTED
    assert len(pairs.values) == 2
    stopped = eigsh(A, 2, "SA", method="lobpcg", callback=lambda s: True, generator=seeded())
    assert stopped.status is Status.STOPPED


def test_what_cannot_be_is_refused():
    A = torch.diag(torch.arange(1.0, 9.0))
    with pytest.raises(OperatorError, match="positive definite B"):
        eigsh(A, 2, B=-torch.eye(8))
    with pytest.raises(OperatorError, match="symmetric B"):
        eigsh(A, 2, B=torch.eye(7))
    with pytest.raises(ArgumentError, match="'SA', 'LA'"):
        eigsh(A, 2, "LM", method="lobpcg")
    with pytest.raises(ArgumentError, match="lobpcg"):
        eigsh(A, 2, method="lanczos", B=torch.eye(8))
    with pytest.raises(ArgumentError, match="lanczos"):
        eigsh(A, 2, method="lobpcg", checkpoint="x")
    with pytest.raises(NonFiniteError):
        eigsh(function_operator(lambda v: v * torch.nan, 4, symmetric=True), 1, method="lobpcg")


def test_a_start_of_zeros_is_none():
    A = torch.diag(torch.arange(1.0, 6.0))
    values = eigsh(A, 2, "SA", method="lobpcg", v0=torch.zeros(5)).values
    torch.testing.assert_close(values, torch.tensor([1.0, 2.0], dtype=torch.float64))


@pytest.mark.some_cases(3)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("k", "block"), [(1, 2), (5, 6), (10, 12)])
@pytest.mark.parametrize("generalised", [False, True])
def test_so_many_vectors(k, block, generalised):
    n = 50_000
    d = torch.linspace(0, 1, n, dtype=DOUBLE)
    d[:12] = torch.arange(2.0, 14.0)
    A, B = diagonal_operator(d), diagonal_operator(1 + d.flip(0)) if generalised else None
    with PeakMemory() as memory:
        pairs = eigsh(A, k, method="lobpcg", B=B, generator=seeded())
    assert pairs.converged.all()
    assert memory.peak == pytest.approx((10 if generalised else 7) * block * 8 * n, rel=0.01)
