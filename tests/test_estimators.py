"""What estimators share: running means, quantiles, checks of the tolerance, methods, results."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import ArgumentError, HesseError
from hesse.estimators import (
    Estimate,
    Hutchinson,
    HutchPP,
    KernelPolynomial,
    LanczosDensity,
    XDiag,
    XNysTrace,
    XTrace,
    count_eigenvalues,
    diagonal,
    logdet,
    norm,
    spectral_density,
    trace,
)
from hesse.estimators.estimate import RunningMean, quantile_of, student
from hesse.estimators.leave_out import mean_and_error
from hesse.estimators.orthonormal import extend
from hesse.estimators.sketch import grown_gram, no_entries
from hesse.estimators.tolerance import is_check, next_check
from hesse.operators import identity_operator
from hesse.testing import symmetric_matrix


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_the_running_mean_is_the_mean_and_its_error(samples):
    running, column = RunningMean(), RunningMean()
    for sample in samples:
        running.add(sample)
        column.add(torch.tensor([sample, 2 * sample], dtype=torch.float64))
    exact = torch.tensor(samples, dtype=torch.float64)
    error = float(exact.std()) / math.sqrt(len(samples))
    assert running.mean == pytest.approx(float(exact.mean()), abs=1e-9)
    assert running.standard_error == pytest.approx(error, abs=1e-6)
    assert column.standard_error.tolist() == pytest.approx([error, 2 * error], abs=1e-6)


def test_quantiles_are_those_of_the_tables():
    # Abramowitz & Stegun, table 26.10.
    for freedom, value in ((1, 12.706), (2, 4.303), (5, 2.571), (20, 2.086), (120, 1.980)):
        assert student(freedom) == pytest.approx(value, abs=2e-3)
    assert math.isinf(quantile_of(1))
    assert quantile_of(241) == student(144)


def test_the_tolerance_is_checked_at_ever_larger_intervals():
    assert [count for count in range(1, 100) if is_check(count)] == [16, 24, 36, 54, 81]
    assert next_check(81) == 122


def test_the_error_of_leave_one_out_estimates():
    h = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert mean_and_error(h, torch.zeros(3, 3)) == (
        pytest.approx(7 / 3),
        pytest.approx(float(h.std()) / math.sqrt(3)),
    )
    # All of a change shared by two tests is covariance.
    change = torch.tensor([[9.0, 1, 0], [1, 9, 0], [0, 0, 9]], dtype=torch.float64)
    _, error = mean_and_error(h, change)
    assert error**2 == pytest.approx(float(h.var()) / 3 + 2 / 6)
    # A negative one is chance: twice the spread stands in for it.
    change[0, 1] = -1.0
    _, error = mean_and_error(h, change)
    assert error**2 == pytest.approx(float(h.var()))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_a_basis_that_grows_by_blocks_is_that_of_all_its_rows(sizes, rank):
    generator = torch.Generator().manual_seed(0)
    A = identity_operator(200, dtype=torch.float64)
    left, right = (
        torch.randn(s, generator=generator).double() for s in ((sum(sizes), rank), (rank, 200))
    )
    rows = (
        left
        @ right
        * 10.0 ** -torch.arange(200.0, dtype=torch.float64)[: sum(sizes), None].remainder(9)
    )
    basis, R = [], no_entries()
    for block in rows.split(sizes):
        found, columns = extend(A.domain, basis, block.clone(), generator)
        basis.append(found)
        R = torch.cat([torch.nn.functional.pad(R, (0, 0, 0, len(block))), columns], dim=1)
    Q = torch.cat(basis)
    torch.testing.assert_close(Q @ Q.T, torch.eye(len(Q)).double(), rtol=0.0, atol=1e-13)
    assert torch.equal(R, R.triu())
    assert float((R.T @ Q - rows).norm(dim=1).div(rows.norm(dim=1)).max()) <= 1e-13


def test_a_gram_matrix_that_grows_is_that_of_all_rows():
    A = identity_operator(50, dtype=torch.float64)
    left, right = torch.randn(2, 9, 50, dtype=torch.float64)
    G = no_entries()
    for count in (1, 2, 3):
        blocks = ([*rows.split([4, 3, 2])][:count] for rows in (left, right))
        G = grown_gram(A.domain, G, *blocks)
    torch.testing.assert_close(G, left @ right.T)


def test_every_estimate_leaves_the_global_generator_alone():
    M = torch.diag(torch.arange(1.0, 41, dtype=torch.float64))
    state = torch.random.get_rng_state()
    for measure in (trace, diagonal, logdet, norm, count_eigenvalues):
        estimate = measure(M, max_products=64, generator=torch.Generator().manual_seed(0))
        assert isinstance(estimate, Estimate)
        assert float(Estimate(2.0, 1.0, 3)) == 2.0
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [14, 15])
def test_a_sketch_that_spans_all_of_it_is_exact_and_says_so(rank, dtype):
    # With sixteen probes: at rank 15 leaving out two of them leaves too few.
    A = symmetric_matrix([0.0] * (100 - rank) + [1.0 + i / rank for i in range(rank)], dtype=dtype)
    options = {"rtol": 0.0, "max_products": 32, "generator": torch.Generator().manual_seed(0)}
    roundings = 1e3 * torch.finfo(dtype).eps * rank
    traced = trace(A, method="xtrace", **options)
    assert abs(float(traced) - float(A.trace())) <= roundings
    assert traced.standard_error <= roundings
    found = diagonal(A, method="xdiag", **options)
    assert float((found.value - A.diagonal()).abs().max()) <= roundings
    assert float(found.standard_error.max()) <= roundings


@pytest.mark.parametrize("wrong", [{"rtol": float("nan")}, {"rtol": -1.0}, {"atol": -1.0}])
def test_tolerances_are_checked(wrong):
    with pytest.raises(ArgumentError, match="tol >= 0"):
        trace(torch.eye(30), **wrong)


@pytest.mark.parametrize(
    ("estimate", "methods"),
    [
        (trace, [Hutchinson(), HutchPP(), XTrace(), XNysTrace()]),
        (diagonal, [Hutchinson(), XDiag()]),
        (spectral_density, [LanczosDensity(), KernelPolynomial()]),
    ],
)
def test_a_name_is_the_default_instance_of_its_method(estimate, methods):
    M = symmetric_matrix(torch.linspace(1.0, 3.0, 40, dtype=torch.float64))
    for method in methods:
        first, second = (
            estimate(M, method=each, generator=torch.Generator().manual_seed(0), max_products=600)
            for each in (method, method.name)
        )
        for key in first.keys():  # noqa: SIM118
            assert repr(first[key]) == repr(second[key])


def test_an_unknown_method_is_answered_with_those_there_are():
    M = torch.eye(30)
    with pytest.raises(ArgumentError, match=r"hesse.trace\(.*method='xtrac'\)(.|\n)*'xtrace'\?"):
        trace(M, method="xtrac")
    for wrong in (XTrace, XDiag(), 3):
        with pytest.raises(ArgumentError, match="or an instance of Hutchinson, HutchPP, XTrace"):
            trace(M, method=wrong)


@pytest.mark.parametrize(
    "estimate", [trace, diagonal, norm, logdet, count_eigenvalues, spectral_density]
)
def test_errors_name_the_public_function(estimate):
    with pytest.raises(HesseError) as caught:
        estimate(torch.eye(30), memory_budget=1)
    assert caught.value.call.startswith(f"hesse.{estimate.__name__}(Tensor(30, 30)")


def test_estimates_of_numbers_print_in_a_line_and_of_vectors_in_a_line_a_field():
    assert repr(Estimate(6.0, 0.5, 3)) == "Estimate(value=6.0, standard_error=0.5, products=3)"
    vector = diagonal(torch.diag(torch.arange(1.0, 1001)), max_products=20)
    assert len(repr(vector).splitlines()) == 5
    assert "tensor of shape (1000,)" in repr(vector)
    assert vector["status"] is vector.status
    assert "<table>" in Estimate(6.0, 0.5, 3)._repr_html_()
    value, error, products = vector
    assert (value is vector[0], error is vector["standard_error"]) == (True, True)
    assert products == vector["products"]
