"""Estimates and their errors: exact where they can be, honest where they cannot."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, ShapeError
from hesse.estimators import spectral_density, trace
from hesse.estimators.estimate import RunningMean
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator

DOUBLE = torch.float64


def symmetric(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    M = torch.randn(n, n, generator=generator, dtype=DOUBLE) + 2 * torch.eye(n, dtype=DOUBLE)
    return (M + M.T) / 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_running_mean_is_the_mean_and_its_error():
    samples = torch.randn(100, dtype=DOUBLE)
    running = RunningMean()
    for sample in samples.tolist():
        running.add(sample)
    assert running.mean == pytest.approx(float(samples.mean()))
    assert running.standard_error == pytest.approx(float(samples.std()) / 10)


def test_a_small_matrix_and_a_diagonal_one_are_exact():
    M = symmetric(7)
    assert trace(M) == (pytest.approx(float(M.trace())), 0.0, 7)
    estimate = trace(diagonal_operator(torch.arange(1.0, 101, dtype=DOUBLE)), generator=seeded())
    assert estimate.value == pytest.approx(5050.0)
    assert estimate.standard_error < 1e-9


def test_the_interval_covers_as_often_as_it_says():
    M, runs = dense_operator(symmetric(30)), 400
    truth = float(M.matrix.trace())
    inside = 0
    for seed in range(runs):
        estimate = trace(M, rtol=0.0, max_products=40, generator=seeded(seed))
        inside += abs(estimate.value - truth) <= 2 * estimate.standard_error
    # About 95%; a binomial count of 400 stays within 3 standard deviations, +-3.3%.
    assert 0.917 <= inside / runs <= 0.98


def test_it_stops_at_the_target_and_counts():
    A = CountingOperator(dense_operator(symmetric(200)))
    estimate = trace(A, rtol=0.05, generator=seeded())
    assert estimate.standard_error <= 0.05 * abs(estimate.value)
    assert estimate.products == A.products
    assert estimate.products > 10


def test_the_callback_stops_the_trace():
    estimate = trace(symmetric(50), rtol=0.0, callback=lambda e: e.products == 12)
    assert estimate.products == 12


def test_moments_of_the_density_are_those_of_the_spectrum():
    M = symmetric(80)
    density = spectral_density(M, probes=30, steps=20, generator=seeded())
    for power in (1, 2, 3):
        exact = float(torch.linalg.matrix_power(M, power).trace()) / 80
        per_probe = (density.weights * density.nodes**power).sum(dim=1)
        error = float(per_probe.std()) / math.sqrt(30)
        assert abs(density.moment(power) - exact) <= 4 * error
    assert density.products == 600


def test_the_density_is_a_density_and_its_band_holds():
    M = symmetric(60, 1)
    density = spectral_density(M, probes=40, steps=60, bandwidth=0.5, generator=seeded())
    step = density.grid[1] - density.grid[0]
    # the grid ends four bandwidths out: the Gaussians' tails beyond weigh 6e-5
    assert float(density.density.sum() * step) == pytest.approx(1.0, abs=1e-4)
    z = (density.grid - torch.linalg.eigvalsh(M)[:, None]) / 0.5
    exact = (torch.exp(-0.5 * z**2) / (0.5 * math.sqrt(2 * math.pi))).mean(dim=0)
    outside = (density.density - exact).abs() > 3 * density.standard_error + 1e-12
    assert float(outside.double().mean()) < 0.05


def test_seeds_reproduce_and_leave_the_global_generator_alone():
    M, state = symmetric(40), torch.random.get_rng_state()
    assert trace(M, generator=seeded(1)) == trace(M, generator=seeded(1))
    assert trace(M, generator=seeded(1)) != trace(M, generator=seeded(2))
    first, second = (spectral_density(M, steps=5, generator=seeded(1)) for _ in range(2))
    assert torch.equal(first.nodes, second.nodes)
    assert torch.equal(state, torch.random.get_rng_state())


def test_what_cannot_be_is_refused():
    with pytest.raises(ShapeError):
        trace(torch.ones(2, 3))
    with pytest.raises(ArgumentError):
        trace(torch.eye(3), max_products=0)
    with pytest.raises(OperatorError, match="symmetric"):
        spectral_density(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
    with pytest.raises(ArgumentError):
        spectral_density(torch.eye(3), probes=0)
    broken = function_operator(lambda v: v * math.nan, 20, symmetric=True)
    for measure in (trace, spectral_density):
        with pytest.raises(NonFiniteError):
            measure(broken)
