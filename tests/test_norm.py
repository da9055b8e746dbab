"""Norms: Frobenius with a statistical error, spectral with a bound, of any shape."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, Status
from hesse.estimators import norm
from hesse.operators import dense_operator, function_operator
from hesse.testing import CountingOperator

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def matrix(rows, columns, dtype=DOUBLE):
    return torch.randn(rows, columns, generator=seeded(1), dtype=dtype)


@pytest.mark.parametrize("shape", [(60, 60), (90, 40), (40, 90)])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_frobenius_norm(shape, dtype):
    M = matrix(*shape, dtype)
    A = CountingOperator(dense_operator(M))
    estimate = norm(A, generator=seeded())
    assert estimate.status is Status.CONVERGED
    assert estimate.standard_error <= 0.01 * estimate.value
    assert estimate.products == A.products
    error = abs(estimate.value - float(torch.linalg.matrix_norm(M.double())))
    assert error <= 4 * estimate.standard_error + estimate.rounding
    assert estimate == norm(A, generator=seeded())


def test_its_square_is_unbiased():
    M, runs = matrix(50, 30), 300
    squares = torch.tensor(
        [norm(M, rtol=0.0, max_products=20, generator=seeded(s)).value ** 2 for s in range(runs)]
    )
    error = float(squares.std()) / math.sqrt(runs)
    assert abs(float(squares.mean() - (M**2).sum())) <= 4 * error


@pytest.mark.parametrize("shape", [(60, 60), (90, 40), (40, 90)])
def test_the_spectral_norm_and_its_bound(shape):
    M = matrix(*shape)
    A = CountingOperator(dense_operator(M))
    estimate = norm(A, 2, rtol=1e-3, generator=seeded())
    assert estimate.status is Status.CONVERGED
    assert estimate.products == A.products
    assert abs(estimate.value - float(torch.linalg.matrix_norm(M, 2))) <= estimate.standard_error
    assert estimate.standard_error <= 1e-3 * estimate.value
    assert estimate.interval[0] == estimate.value - estimate.standard_error


def test_a_symmetric_operator_needs_no_square_and_may_be_negative():
    M = -torch.diag(torch.arange(1.0, 41, dtype=DOUBLE))
    assert norm(M, 2, rtol=1e-6).value == pytest.approx(40.0, rel=1e-6)


def test_small_ones_are_exact_and_zero_is_zero():
    M = matrix(20, 4)
    for ord in ("fro", 2):
        assert norm(M, ord).value == pytest.approx(float(torch.linalg.matrix_norm(M, ord)))
        assert norm(torch.zeros(20, 20), ord).value == 0.0


def test_ctrl_c_and_refusals():
    def interrupt(estimate):
        raise KeyboardInterrupt

    assert norm(matrix(40, 40), callback=interrupt).status is Status.INTERRUPTED
    with pytest.raises(ArgumentError, match="ord"):
        norm(torch.eye(20), 1)
    with pytest.raises(OperatorError, match="adjoint"):
        norm(function_operator(lambda v: v, 20), 2)
    for ord in ("fro", 2):
        with pytest.raises(NonFiniteError):
            norm(function_operator(lambda v: v * math.nan, 20, symmetric=True), ord)
