"""The trace: every method unbiased, counted, reproducible, and resumed to the same bits."""

import math

import pytest
import torch

from hesse.errors import (
    ArgumentError,
    FallbackWarning,
    NonFiniteError,
    OperatorError,
    ShapeError,
    Status,
)
from hesse.estimators import trace
from hesse.memory.peak import PeakMemory
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64
METHODS = ["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def decaying(n=80):
    return symmetric_matrix(torch.arange(1, n + 1, dtype=DOUBLE) ** -2.0)


def flat(n=80):
    return symmetric_matrix(torch.linspace(1.0, 3.0, n, dtype=DOUBLE))


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("matrix", [decaying, flat])
def test_every_method_is_unbiased(method, matrix):
    A = dense_operator(matrix())
    truth, runs = float(A.matrix.trace()), 200
    errors = [
        trace(A, method=method, rtol=0.0, max_products=24, generator=seeded(seed)).value - truth
        for seed in range(runs)
    ]
    errors = torch.tensor(errors, dtype=DOUBLE)
    assert abs(float(errors.mean())) <= 4 * float(errors.std()) / math.sqrt(runs)


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_at_the_target_and_counts(method):
    A = CountingOperator(dense_operator(decaying()))
    estimate = trace(A, method=method, rtol=0.05, generator=seeded())
    assert estimate.status is Status.CONVERGED
    assert estimate.standard_error <= 0.05 * abs(estimate.value)
    assert estimate.products == A.products


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_products_are_what_the_documentation_says(method):
    A = CountingOperator(dense_operator(flat()))
    estimate = trace(A, method=method, rtol=0.0, max_products=50, generator=seeded())
    assert A.products == estimate.products == 50
    assert estimate.status is Status.MAX_PRODUCTS


def test_deflation_pays_where_the_spectrum_decays_and_auto_sees_it():
    decays, stays = dense_operator(decaying()), dense_operator(flat())
    plain = trace(decays, method="hutchinson", rtol=0.02, generator=seeded()).products
    assert trace(decays, rtol=0.02, generator=seeded()).products < plain / 10
    auto, plain = (trace(stays, method=m, generator=seeded()) for m in ("auto", "hutchinson"))
    assert auto.products == plain.products
    assert auto.value == pytest.approx(plain.value, rel=1e-13)


def test_an_exact_rank_is_found_by_the_sketches():
    values = torch.zeros(60, dtype=DOUBLE)
    values[:5] = torch.arange(1.0, 6, dtype=DOUBLE)
    for method in ("hutch++", "xtrace", "xnystrace"):
        estimate = trace(symmetric_matrix(values), method=method, generator=seeded())
        assert estimate.value == pytest.approx(15.0, rel=1e-9)
        assert estimate.products <= 40


@pytest.mark.parametrize("method", METHODS)
def test_the_zero_operator_has_no_trace(method):
    assert trace(torch.zeros(30, 30), method=method, atol=1e-6).value == pytest.approx(
        0.0, abs=1e-12
    )


@pytest.mark.parametrize("method", ["xtrace", "xnystrace"])
def test_a_sketch_of_everything_is_exact(method):
    M = symmetric_matrix(torch.linspace(0.1, 1.0, 20, dtype=DOUBLE))
    estimate = trace(M, method=method, rtol=1e-9, generator=seeded())
    assert estimate.value == pytest.approx(float(M.trace()), rel=1e-10)
    assert estimate.standard_error == 0.0


@pytest.mark.some_cases(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_seeds_reproduce_in_every_dtype(method, dtype):
    M = decaying().to(dtype)
    first, again, other = (trace(M, method=method, generator=seeded(s)) for s in (1, 1, 2))
    assert first == again
    assert first.value != other.value
    assert abs(first.value - float(M.trace())) <= 5 * first.standard_error


def test_operators_of_trees_have_traces():
    d = {"a": torch.arange(1.0, 13), "b": torch.ones(3, 2)}
    for method in METHODS:
        assert trace(diagonal_operator(d), method=method).value == pytest.approx(84.0, rel=0.05)


def test_blocks_change_nothing_but_rounding():
    A = dense_operator(flat())
    one, many = (
        trace(
            A, method="hutchinson", block_size=size, rtol=0.0, max_products=30, generator=seeded()
        )
        for size in (1, 7)
    )
    assert one.value == pytest.approx(many.value, rel=1e-13)


def test_a_nonsymmetric_operator_needs_no_adjoint():
    M = torch.randn(60, 60, generator=seeded(), dtype=DOUBLE) + 3 * torch.eye(60, dtype=DOUBLE)
    A = function_operator(lambda v: M @ v, 60, dtype=DOUBLE)
    for method in ("auto", "hutchinson", "hutch++", "xtrace"):
        estimate = trace(A, method=method, generator=seeded(), max_products=50)
        assert abs(estimate.value - float(M.trace())) <= 4 * estimate.standard_error


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_returns_the_estimate_so_far(method):
    def interrupt(estimate):
        if estimate.products >= 20:
            raise KeyboardInterrupt

    estimate = trace(decaying(), method=method, rtol=0.0, generator=seeded(), callback=interrupt)
    assert estimate.status is Status.INTERRUPTED
    assert math.isfinite(estimate.value)


def test_ctrl_c_before_the_first_sample_goes_through():
    def interrupted(v):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(function_operator(interrupted, 20, symmetric=True))


def test_limits_and_the_callback_end_it():
    M = decaying()
    seen = []
    stopped = trace(M, method="hutchinson", rtol=0.0, callback=lambda e: seen.append(e) or True)
    assert stopped.status is Status.STOPPED
    assert seen[0].products == stopped.products == 8
    assert trace(M, method="hutchinson", rtol=1e-9, max_seconds=1e-9).status is Status.MAX_SECONDS


def test_what_cannot_be_is_refused():
    with pytest.raises(ShapeError):
        trace(torch.ones(2, 3))
    with pytest.raises(ArgumentError, match="max_products"):
        trace(torch.eye(30), max_products=0)
    with pytest.raises(ArgumentError, match="hutch"):
        trace(torch.eye(30), method="hutch")
    with pytest.raises(ArgumentError, match="block_size"):
        trace(torch.eye(30), block_size=0)
    with pytest.raises(ArgumentError, match="max_products >= 4"):
        trace(torch.eye(30), method="hutch++", max_products=3)
    with pytest.raises(OperatorError, match="v'A v / v'v = -"):
        trace(-decaying(), method="xnystrace")
    broken = function_operator(lambda v: v * math.nan, 20, symmetric=True)
    for method in METHODS:
        with pytest.raises(NonFiniteError):
            trace(broken, method=method)


@pytest.mark.usefixtures("sampled")
def test_a_budget_bounds_the_sketch_or_is_refused():
    M = decaying()
    vector = 80 * 8
    for method in ("xtrace", "hutch++"):
        with pytest.raises(ArgumentError, match="memory budget of at least"):
            trace(M, method=method, memory_budget=2 * vector)
    with pytest.warns(FallbackWarning, match="the sketch ends at 10 probes"):
        estimate = trace(M, method="xtrace", rtol=1e-9, memory_budget=30 * vector)
    assert estimate.products == 20
    # No room for ten directions: plain probes.
    auto, plain = (
        trace(M, method=m, memory_budget=20 * vector, max_products=100, generator=seeded())
        for m in ("auto", "hutchinson")
    )
    assert auto.value == pytest.approx(plain.value, rel=1e-13)


@pytest.mark.some_cases(3)
@pytest.mark.parametrize(("method", "held"), [("xtrace", 3), ("xnystrace", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_sketch_grows_in_place(method, held, dtype):
    n, probes = 60_000, 54  # after four growths
    A = diagonal_operator(torch.arange(1, n + 1, dtype=dtype) ** -1.5)
    cost = 2 if method == "xtrace" else 1
    limits = {"rtol": 0.0, "max_products": cost * probes, "block_size": 1}
    with PeakMemory() as memory:
        trace(A, method=method, generator=seeded(), **limits)
    vectors = memory.peak / (n * torch.finfo(dtype).bits // 8)
    # Besides, one more vector that is drawn, and what inner products are summed from.
    assert held * probes <= vectors <= held * probes + 4


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, method):
    """Ctrl-C in the middle of a step: the file holds the last whole one."""
    M, left = decaying(130), [70]

    def product(v):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return M @ v

    A = function_operator(product, 130, symmetric=True, dtype=DOUBLE)
    limits = {"method": method, "rtol": 0.0, "max_products": 120}
    whole = trace(M, **limits, block_size=1, generator=seeded(4))
    path = tmp_path / "run"
    interrupted = trace(A, **limits, block_size=1, generator=seeded(4), checkpoint=path)
    assert interrupted.status is Status.INTERRUPTED
    resumed = trace(A, **limits, block_size=1, generator=seeded(4), checkpoint=path)
    assert resumed.products == whole.products == 120
    assert resumed.value == pytest.approx(whole.value, rel=1e-10)
    assert resumed.standard_error == pytest.approx(whole.standard_error, rel=1e-6)


def test_a_checkpoint_without_a_generator_has_one_of_its_own(tmp_path):
    M, path = decaying(), tmp_path / "run"
    first = trace(M, rtol=0.0, max_products=60, checkpoint=path, callback=lambda e: True)
    assert first.status is Status.STOPPED
    torch.rand(3)  # what happens to the global generator in between does not matter
    resumed = trace(M, rtol=0.0, max_products=60, checkpoint=path)
    torch.manual_seed(0)
    assert resumed == trace(M, rtol=0.0, max_products=60, checkpoint=tmp_path / "other")
    with pytest.raises(ArgumentError, match="method"):
        trace(M, method="hutchinson", checkpoint=path)


@pytest.mark.parametrize("scale", [1e-25, 1e18])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace", "xnystrace"])
def test_it_is_in_the_units_of_the_operator(method, scale):
    M = symmetric_matrix(torch.linspace(1.0, 3.0, 100, dtype=torch.float64)).float()
    plain, scaled = (
        trace(A, method=method, rtol=0.0, max_products=40, generator=seeded(0))
        for A in (M, M * scale)
    )
    assert scaled.value / scale == pytest.approx(plain.value, rel=1e-5)
    assert scaled.standard_error / scale == pytest.approx(plain.standard_error, rel=1e-2)
