"""The diagonal: unbiased, counted, with an error for every entry."""

import itertools
import math

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, ShapeError, Status
from hesse.estimators import diagonal
from hesse.estimators.probes import signs
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix
from hesse.vectors import Space

DOUBLE = torch.float64
METHODS = ["auto", "hutchinson", "xdiag"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def decaying(n=60, dtype=DOUBLE):
    return symmetric_matrix(torch.arange(1, n + 1, dtype=DOUBLE) ** -2.0, dtype=dtype)


def lopsided(n=60):
    return torch.randn(n, n, generator=seeded(2), dtype=DOUBLE) @ decaying(n)


@pytest.mark.some_cases(3)
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("matrix", [decaying, lopsided])
def test_every_method_is_unbiased(method, matrix):
    M, runs = matrix(), 200
    errors = torch.stack(
        [
            diagonal(M, method=method, rtol=0.0, max_products=24, generator=seeded(s)).value
            - M.diagonal()
            for s in range(runs)
        ]
    )
    # 60 entries at four standard deviations: one in 260 runs of this test would fail by chance.
    z = errors.mean(dim=0) / (errors.std(dim=0) / math.sqrt(runs))
    assert float(z.abs().max()) <= 4


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_at_the_target_and_counts(method):
    A = CountingOperator(dense_operator(decaying()))
    estimate = diagonal(A, method=method, rtol=0.2, generator=seeded())
    assert estimate.status is Status.CONVERGED
    assert float(estimate.standard_error.norm()) <= 0.2 * float(estimate.value.norm())
    assert estimate.products == A.products


def test_a_diagonal_operator_is_exact_and_a_small_matrix_too():
    d = torch.arange(1.0, 41, dtype=DOUBLE)
    torch.testing.assert_close(diagonal(diagonal_operator(d), generator=seeded()).value, d)
    M = lopsided(7)
    estimate = diagonal(M)
    assert torch.equal(estimate.value, M.diagonal())
    assert not bool(estimate.standard_error.any())


def test_deflation_pays_and_auto_sees_it():
    plain = diagonal(decaying(), method="hutchinson", rtol=0.02, generator=seeded())
    auto = diagonal(decaying(), rtol=0.02, generator=seeded())
    assert auto.products < plain.products / 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_seeds_reproduce_in_every_dtype(method, dtype):
    M = decaying(dtype=dtype)
    first, again, other = (
        diagonal(M, method=method, rtol=0.1, generator=seeded(s)) for s in (1, 1, 2)
    )
    assert first.value.dtype == dtype
    assert torch.equal(first.value, again.value)
    assert not torch.equal(first.value, other.value)


def left_out(M, probes, i, others):
    """The diagonal by the sketch of the other probes, tested with probe i."""
    Q = torch.linalg.qr(M @ probes[others].T).Q
    image = M @ probes[i]
    return (Q * (M.T @ Q)).sum(dim=1) + probes[i] * (image - Q @ (Q.T @ image))


@pytest.mark.parametrize("matrix", [decaying, lopsided])
def test_xdiag_and_its_error_are_what_their_definitions_say(matrix):
    M, m = matrix(), 16
    estimate = diagonal(M, method="xdiag", rtol=0.0, max_products=2 * m, generator=seeded())
    probes = signs(Space.flat(len(M), DOUBLE), m, seeded())
    every = set(range(m))
    h = torch.stack([left_out(M, probes, i, sorted(every - {i})) for i in range(m)])
    covariance = torch.zeros(len(M), dtype=DOUBLE)
    for i, j in itertools.permutations(range(m), 2):
        rest = sorted(every - {i, j})
        covariance += (h[i] - left_out(M, probes, i, rest)) * (h[j] - left_out(M, probes, j, rest))
    covariance /= m * (m - 1)
    assert bool((covariance > 0).any())
    error = (h.var(dim=0) / m + covariance.clamp(min=0.0)).sqrt()
    torch.testing.assert_close(estimate.value, h.mean(dim=0), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(estimate.standard_error, error, rtol=1e-9, atol=1e-12)


def test_the_diagonal_of_an_operator_on_trees_unflattens():
    d = {"a": torch.arange(1.0, 13), "b": torch.ones(3, 2)}
    A = diagonal_operator(d)
    torch.testing.assert_close(A.domain.unflatten(diagonal(A).value)["b"], d["b"])


def test_ctrl_c_returns_the_estimate_so_far():
    def interrupt(estimate):
        if estimate.products >= 20:
            raise KeyboardInterrupt

    for method in METHODS:
        estimate = diagonal(decaying(), method=method, rtol=0.0, callback=interrupt)
        assert estimate.status is Status.INTERRUPTED
        assert bool(torch.isfinite(estimate.value).all())


def test_what_cannot_be_is_refused():
    with pytest.raises(ShapeError):
        diagonal(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="method"):
        diagonal(torch.eye(30), method="xtrace")
    with pytest.raises(ArgumentError, match="memory budget"):
        diagonal(torch.eye(30), method="xdiag", memory_budget="1kB")
    M = lopsided()
    without_adjoint = function_operator(lambda v: M @ v, 60, dtype=DOUBLE)
    with pytest.raises(OperatorError, match="adjoint"):
        diagonal(without_adjoint, method="xdiag")
    broken = function_operator(lambda v: v * math.nan, 20, symmetric=True)
    for method in METHODS:
        with pytest.raises(NonFiniteError):
            diagonal(broken, method=method)


@pytest.mark.parametrize("scale", [1e-25, 1e18])
@pytest.mark.parametrize("method", ["auto", "hutchinson"])
def test_the_error_is_in_the_units_of_the_operator(scale, method):
    M = symmetric_matrix(torch.linspace(1.0, 3.0, 40, dtype=torch.float64)).float()
    plain, scaled = (
        diagonal(A, method=method, rtol=0.0, max_products=24, generator=seeded(0))
        for A in (M, M * scale)
    )
    torch.testing.assert_close(scaled.standard_error / scale, plain.standard_error)
