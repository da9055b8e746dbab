# SPDX-License-Identifier: Apache-2.0
"""Where n products give the exact answer for no more than sampling takes, they are taken."""

import math

import pytest
import torch

from hesse.errors import Status
from hesse.estimators import (
    KernelPolynomial,
    LanczosDensity,
    count_eigenvalues,
    diagonal,
    logdet,
    norm,
    spectral_density,
    trace,
)
from hesse.krylov import inverse_operator
from hesse.operators import dense_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64
N = 300


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hard(n=N):
    """A matrix whose trace, diagonal and logarithm of the determinant are dear to sample."""
    return symmetric_matrix(torch.logspace(-4, 2, n, dtype=DOUBLE))


def rough(n=N):
    M = torch.randn(n, n, generator=seeded(3), dtype=DOUBLE)
    return (M + M.T) / 2


def counting(matrix):
    return CountingOperator(dense_operator(matrix))


QUANTITIES = {
    "trace": (trace, lambda M: M.trace()),
    "diagonal": (diagonal, lambda M: M.diagonal()),
    "Frobenius norm": (lambda A, **o: norm(A, rtol=1e-3, **o), torch.linalg.matrix_norm),
    "logdet": (logdet, torch.logdet),
    "count": (
        lambda A, **o: count_eigenvalues(A, 0.01, 10.0, atol=0.1, **o),
        lambda M: ((v := torch.linalg.eigvalsh(M)) > 0.01).logical_and(v < 10.0).sum().double(),
    ),
}


@pytest.mark.some_cases(17)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("n", [50, 300, 700])
@pytest.mark.parametrize("name", QUANTITIES)
@pytest.mark.parametrize("matrix", [hard, rough])
def test_no_estimate_is_dearer_than_the_truth(name, n, matrix):
    if (name, matrix) == ("logdet", rough):
        pytest.skip("not positive definite")
    measure, exact = QUANTITIES[name]
    M = matrix(n)
    A = counting(M)
    estimate = measure(A, generator=seeded())
    assert estimate.products == A.products <= n + 256
    assert estimate.status is Status.CONVERGED
    if float(torch.as_tensor(estimate.standard_error).max()) == 0.0:
        low, high = estimate.interval
        assert bool(torch.as_tensor((low <= exact(M)) & (exact(M) <= high)).all())
        torch.testing.assert_close(
            torch.as_tensor(estimate.value, dtype=DOUBLE), exact(M), rtol=1e-9, atol=1e-9
        )


@pytest.mark.slow
def test_the_diagonal_of_an_inverse():
    M = symmetric_matrix(torch.logspace(0, 2, N, dtype=DOUBLE))
    A = function_operator(lambda v: M @ v, N, symmetric=True, dtype=DOUBLE)
    inverse = CountingOperator(inverse_operator(A))
    estimate = diagonal(inverse, generator=seeded())
    assert estimate.products == inverse.products <= N + 16
    torch.testing.assert_close(estimate.value, torch.linalg.inv(M).diagonal(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", [LanczosDensity(), KernelPolynomial(64)])
def test_the_density_of_all_eigenvalues(method):
    M = rough(200)
    A = counting(M)
    density = spectral_density(A, method=method, generator=seeded())
    assert density.products == A.products == 200
    assert density.error == 0.0
    assert float(density.density.sum() * (density.grid[1] - density.grid[0])) == pytest.approx(
        1.0, abs=1e-2
    )
    assert density.moment(1) == pytest.approx(float(M.trace()) / 200, abs=1e-2)
    low, high = density.interval
    assert bool((low <= density.density).all() and (density.density <= high).all())
    many = spectral_density(A, method=method, generator=seeded(), max_products=199, probes=2)
    assert many.products <= 199


def test_a_run_that_is_watched_samples_first_and_stops_where_it_is_told(tmp_path):
    M, seen = hard(), []
    whole = logdet(M, generator=seeded(), callback=lambda e: seen.append(e) and None)
    assert whole.standard_error == 0.0
    assert whole.products <= N + 512
    path = tmp_path / "run"
    saved = trace(rough(), generator=seeded(), checkpoint=path)
    again = trace(rough(), generator=seeded(), checkpoint=path)
    assert saved == again
    assert saved.standard_error == 0.0

    calls = []

    def interrupt(estimate):
        calls.append(estimate.products)
        if estimate.products > 60:
            raise KeyboardInterrupt

    stopped = trace(rough(), generator=seeded(), callback=interrupt)
    assert stopped.status is Status.INTERRUPTED
    assert stopped.standard_error > 0.0
    stopped = trace(rough(), generator=seeded(), callback=lambda e: e.products > 60)
    assert stopped.status is Status.STOPPED
    assert 60 < stopped.products < N
    assert math.isfinite(stopped.value)


def test_limits_and_named_methods_are_kept():
    A = counting(rough())
    assert trace(A, max_products=N - 1, generator=seeded()).products <= N - 1
    assert trace(A, method="hutchinson", max_products=400, generator=seeded()).standard_error > 0.0
    assert logdet(hard(), max_products=290, generator=seeded()).products <= 290


def test_cheap_estimates_stay_cheap():
    A = counting(symmetric_matrix(torch.linspace(1.0, 1.2, 1000, dtype=DOUBLE)))
    assert trace(A, generator=seeded()).products <= 26
    assert logdet(A, rtol=0.1, generator=seeded()).products <= 16 * 16
