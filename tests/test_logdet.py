"""log det and the number of eigenvalues in an interval: sums over the spectrum by quadrature."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, Status
from hesse.estimators import count_eigenvalues, logdet
from hesse.estimators.count_eigenvalues import weight_below
from hesse.estimators.probes import signs
from hesse.estimators.quadrature import Quadratures, gauss, radau
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moderate(n=100):
    return symmetric_matrix(torch.logspace(-2, 1, n, dtype=DOUBLE))


def indefinite(n=100):
    return symmetric_matrix(torch.linspace(-1.0, 2.0, n, dtype=DOUBLE))


def test_gauss_rules_take_moments_exactly_and_radau_rules_have_their_node():
    A = dense_operator(indefinite())
    starts = torch.randn(2, 100, generator=seeded(), dtype=DOUBLE)
    quadratures = Quadratures(A, starts, 8)
    quadratures.extend(6)
    for i, start in enumerate(starts):
        v = start / start.norm()
        rules = [
            (quadratures.rule(i), 12),
            (radau(*quadratures.recurrence(i), 0.3), 13),
        ]
        for (nodes, weights), count in rules:
            for power in range(count):
                exact = float(v @ torch.linalg.matrix_power(A.matrix, power) @ v)
                # Roundings of each factor A, whose norm is 2: at most 7 for each of 30 seeds.
                rounding = 20 * (power + 1) * torch.finfo(DOUBLE).eps * 2.0**power
                assert float(weights @ nodes**power) == pytest.approx(exact, abs=rounding)
        nodes, _ = rules[1][0]
        assert float((nodes - 0.3).abs().min()) < 1e-12
    assert quadratures.products == 12


def test_a_process_that_ends_has_an_exact_rule():
    M = symmetric_matrix(torch.tensor([1.0, 2.0] * 10, dtype=DOUBLE))
    quadratures = Quadratures(dense_operator(M), torch.ones(1, 20, dtype=DOUBLE), 1)
    quadratures.extend(10)
    nodes, weights = quadratures.rule(0)
    assert quadratures.ended(0)
    assert quadratures.products == 2
    assert nodes.tolist() == pytest.approx([1.0, 2.0])
    assert gauss([3.0], [0.0])[1].tolist() == [1.0]
    assert float(weights.sum()) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_logdet_meets_its_target_and_counts(dtype):
    A = CountingOperator(dense_operator(moderate().to(dtype)))
    exact = float(torch.logdet(moderate()))
    estimate = logdet(A, rtol=0.03, generator=seeded())
    assert estimate.status is Status.CONVERGED
    assert estimate.products == A.products
    assert abs(estimate.value - exact) <= 4 * estimate.standard_error
    assert estimate == logdet(A, rtol=0.03, generator=seeded())


@pytest.mark.slow
@pytest.mark.usefixtures("sampled")
def test_logdet_is_unbiased_to_its_quadrature():
    # At 16 steps, which are enough here, the quadrature is good to a few parts in a thousand.
    M, runs = symmetric_matrix(torch.logspace(-2, 0, 60, dtype=DOUBLE)), 60
    errors = torch.tensor(
        [logdet(M, rtol=0.1, generator=seeded(s)).value for s in range(runs)], dtype=DOUBLE
    ) - float(torch.logdet(M))
    # Deep enough means an error of a fifth of the standard error of a run: half that of the mean.
    assert abs(float(errors.mean())) <= 6 * float(errors.std()) / math.sqrt(runs)


@pytest.mark.usefixtures("sampled")
def test_logdet_goes_deeper_where_the_condition_is_worse():
    easy, hard = (
        logdet(symmetric_matrix(values), rtol=0.05, generator=seeded())
        for values in (
            torch.linspace(1, 2, 100, dtype=DOUBLE),
            torch.logspace(-8, 1, 100, dtype=DOUBLE),
        )
    )
    assert easy.products == 16 * 16  # the first 16 probes of the first 16 steps are enough
    assert hard.products >= 16 * 64


def test_small_matrices_are_exact_and_trees_enter():
    assert logdet(torch.eye(3) * 2.0).value == pytest.approx(3 * math.log(2.0))
    assert count_eigenvalues(torch.diag(torch.tensor([-1.0, 0.0, 1.0])), 0.0, 1.0).value == 2.0
    d = {"a": torch.full((12,), 2.0), "b": torch.ones(3)}
    assert logdet(diagonal_operator(d), atol=0.1).value == pytest.approx(
        12 * math.log(2.0), abs=0.5
    )


def test_what_is_not_positive_definite_is_named():
    with pytest.raises(OperatorError, match="the Ritz value -"):
        logdet(indefinite())
    with pytest.raises(OperatorError, match="the Ritz value -"):
        logdet(torch.diag(torch.tensor([1.0, -2.0])))


@pytest.mark.fast_cases(1)
@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("edges", [(-math.inf, 0.0), (0.5, 1.0), (1.0, math.inf)])
def test_counts_lie_in_their_interval(edges):
    A = CountingOperator(dense_operator(indefinite()))
    values = torch.linalg.eigvalsh(indefinite())
    truth = float(((values >= edges[0]) & (values <= edges[1])).sum())
    estimate = count_eigenvalues(A, *edges, rtol=0.05, generator=seeded())
    low, high = estimate.interval
    assert low <= truth <= high
    assert estimate.products == A.products
    assert estimate.standard_error < 0.25 * truth


@pytest.mark.usefixtures("sampled")
def test_a_gap_is_counted_exactly_and_an_eigenvalue_at_the_end_is_in_doubt():
    values = torch.tensor([-1.0] * 7 + [0.0] * 10 + [2.0] * 13, dtype=DOUBLE)
    A = dense_operator(symmetric_matrix(values))
    limits = {"rtol": 0.0, "atol": 0.0, "max_products": 600}
    estimate = count_eigenvalues(A, 0.5, 3.0, **limits, generator=seeded())
    above = torch.linalg.eigh(A.matrix).eigenvectors[:, -13:]
    # How many probes 600 products are is not said: three or more each, of three eigenvalues.
    counts = ((signs(A.domain, 200, seeded()) @ above) ** 2).sum(dim=1)
    means = counts.cumsum(dim=0) / torch.arange(1, 201)
    probes = 1 + int((means - estimate.value).abs().argmin())
    assert estimate.value == pytest.approx(float(means[probes - 1]), rel=1e-10)
    statistical = float(counts[:probes].std()) / math.sqrt(probes)
    assert estimate.standard_error == pytest.approx(statistical, rel=1e-6)
    assert abs(estimate.value - 13) <= 4 * estimate.standard_error
    doubtful = count_eigenvalues(torch.diag(values), high=0.0, max_products=600)
    # Diagonal: probes agree. The ten zeros count for five, and five are the doubt.
    assert doubtful.value == pytest.approx(12.0)
    assert doubtful.quantile * doubtful.standard_error == pytest.approx(5.0)


def test_the_quadrature_bound_holds_for_every_probe():
    """Chebyshev, Markov and Stieltjes: the weight below x is within half the weight at x."""
    M = indefinite()
    values, vectors = torch.linalg.eigh(M)
    starts = torch.randn(5, 100, generator=seeded(), dtype=DOUBLE)
    for depth in (2, 5, 12, 30):
        quadratures = Quadratures(dense_operator(M), starts, 8)
        quadratures.extend(depth)
        for i, start in enumerate(starts):
            measure = (vectors.T @ start / start.norm()) ** 2
            for x in (-0.9, 0.0, 0.77, 1.9, -2.0, 3.0):
                middle, doubt = weight_below(quadratures, i, x)
                assert abs(float(measure[values < x].sum()) - middle) <= doubt + 1e-12


@pytest.mark.usefixtures("sampled")
def test_ctrl_c_limits_and_budgets():
    def interrupt(estimate):
        raise KeyboardInterrupt

    for measure in (logdet, count_eigenvalues):
        estimate = measure(moderate(), callback=interrupt)
        assert estimate.status is Status.INTERRUPTED
        estimate = measure(moderate(), rtol=0.0, atol=0.0, max_products=500, generator=seeded())
        assert estimate.status in (Status.MAX_PRODUCTS, Status.CONVERGED)
        assert estimate.products <= 500
        with pytest.raises(ArgumentError, match="memory budget"):
            measure(moderate(), memory_budget="1kB")
        with pytest.raises(ArgumentError, match="first sample"):
            measure(moderate(), max_products=12)


@pytest.mark.parametrize("measure", [logdet, count_eigenvalues])
@pytest.mark.parametrize("end", [Status.STOPPED, Status.MAX_SECONDS, Status.INTERRUPTED])
def test_the_exact_way_can_be_left(measure, end, monkeypatch):
    """It is taken in place of the first sample, which is then the answer."""
    A, calls = symmetric_matrix(torch.logspace(0, 4, 400, dtype=torch.float64)), []

    def matvec(v):
        calls.append(None)
        if len(calls) == 230:
            if end is Status.INTERRUPTED:
                raise KeyboardInterrupt
            monkeypatch.setattr("hesse.progress.Run._is_late", True)
        return A @ v

    operator = function_operator(matvec, 400, symmetric=True, dtype=torch.float64)
    options = {"high": 10.5} if measure is count_eigenvalues else {}
    stop = (lambda estimate: len(calls) > 230) if end is Status.STOPPED else None
    if end is not Status.STOPPED:
        options["max_seconds"] = 1e9  # an observed run samples first
    estimate = measure(operator, rtol=1e-4, generator=seeded(), callback=stop, **options)
    assert estimate.status is end
    assert 0 < estimate.products < 400
    low, high = estimate.interval
    values = torch.linalg.eigvalsh(A)
    truth = float(values.log().sum()) if measure is logdet else float((values < 10.5).sum())
    assert low <= truth <= high


@pytest.mark.slow
@pytest.mark.usefixtures("sampled")
def test_a_checkpoint_goes_on(tmp_path):
    M, path = moderate(60), tmp_path / "run"
    whole = logdet(M, rtol=0.05, generator=seeded())
    first = logdet(M, rtol=0.05, generator=seeded(), checkpoint=path, callback=lambda e: True)
    assert first.products < whole.products / 2
    assert logdet(M, rtol=0.05, generator=seeded(5), checkpoint=path) == whole


def test_what_cannot_be_is_refused():
    broken = function_operator(lambda v: v * math.nan, 20, symmetric=True)
    for measure in (logdet, count_eigenvalues):
        with pytest.raises(OperatorError, match="symmetric"):
            measure(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        with pytest.raises(NonFiniteError):
            measure(broken)
    with pytest.raises(ArgumentError, match="low <= high"):
        count_eigenvalues(torch.eye(20), 1.0, 0.0)
