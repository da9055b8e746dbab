"""Functions of a matrix, and draws from a Gaussian, by the Lanczos process."""

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, Status
from hesse.estimators.matrix_function import matrix_function
from hesse.estimators.sample_normal import sample_normal
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator

DOUBLE = torch.float64
EXACT = {
    "sqrt": torch.sqrt,
    "inverse-sqrt": torch.rsqrt,
    "inverse": torch.reciprocal,
    "exp": torch.exp,
    "log": torch.log,
    "sign": torch.sign,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def spectral(values, seed=0):
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    values = torch.as_tensor(values, dtype=DOUBLE)
    n = len(values)
    Q, _ = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE))
    M = Q @ torch.diag(values) @ Q.T
    return (M + M.T) / 2, Q


@pytest.mark.parametrize("name", EXACT)
def test_agrees_with_the_definition_and_the_error_is_not_understated(name):
    values = torch.linspace(0.1, 4.0, 120, dtype=DOUBLE)
    values = torch.cat([values, -values[20:]]) if name == "sign" else values
    M, Q = spectral(values)
    b = torch.randn(len(values), generator=seeded(1), dtype=DOUBLE)
    exact = Q @ (EXACT[name](values) * (Q.T @ b))
    A = CountingOperator(dense_operator(M))
    for rtol in (1e-2, 1e-5, 1e-8):
        A.products = 0
        estimate = matrix_function(name, A, b, rtol=rtol)
        error = float((estimate.value - exact).norm())
        assert error <= estimate.standard_error <= rtol * float(estimate.value.norm())
        assert estimate.status is Status.CONVERGED
        assert estimate.products == A.products <= len(values)


def test_a_sign_that_starts_on_one_side_is_not_believed_too_early():
    values = torch.cat([torch.linspace(1.0, 2.0, 60), torch.tensor([-1e-2])]).double()
    M, Q = spectral(values)
    b = Q @ torch.cat([torch.ones(60), torch.tensor([0.5])]).double()
    estimate = matrix_function("sign", M, b, rtol=1e-6)
    exact = Q @ (values.sign() * (Q.T @ b))
    torch.testing.assert_close(estimate.value, exact, rtol=0, atol=1e-5)


def test_a_function_of_the_users_own_and_every_form_of_b():
    M, Q = spectral(torch.linspace(-1, 1, 30))
    B = torch.randn(30, 3, generator=seeded(2), dtype=DOUBLE)
    exact = Q @ torch.diag(torch.cos(torch.linspace(-1, 1, 30).double())) @ Q.T @ B
    block = matrix_function(torch.cos, M, B)
    torch.testing.assert_close(block.value, exact)
    assert block.standard_error.shape == (3,)
    tree = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([[9.0]])}
    root = matrix_function("sqrt", diagonal_operator(tree), {k: v / v for k, v in tree.items()})
    torch.testing.assert_close(root.value, {k: v.sqrt() for k, v in tree.items()})


def test_single_precision_zero_and_an_invariant_subspace():
    zero = matrix_function("exp", torch.eye(3), torch.zeros(3))
    assert (zero.products, float(zero.value.norm())) == (0, 0.0)
    one = matrix_function("exp", torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(one.value, torch.tensor([torch.e, 0.0]))
    assert one.standard_error == 0.0
    semidefinite = torch.diag(torch.tensor([0.0, 0.0, 4.0]))
    root = matrix_function("sqrt", semidefinite, torch.ones(3))
    torch.testing.assert_close(root.value, torch.tensor([0.0, 0.0, 2.0]), rtol=0, atol=1e-3)


def test_limits_are_kept_and_said():
    M, _ = spectral(torch.logspace(-6, 0, 200))
    b = torch.ones(200, dtype=DOUBLE)
    assert matrix_function("log", M, b, basis_size=20).status is Status.MAX_ITERATIONS
    few = matrix_function("log", M, b, max_products=10)
    assert (few.status, few.products) == (Status.MAX_PRODUCTS, 10)
    assert matrix_function("log", M, b, callback=lambda s: True).status is Status.STOPPED


def test_what_cannot_be_is_refused():
    M, _ = spectral([-1.0, 1.0, 2.0])
    b = torch.ones(3, dtype=DOUBLE)
    for name in ("sqrt", "log", "inverse-sqrt"):
        with pytest.raises(OperatorError, match="Ritz value of -"):
            matrix_function(name, M, b)
    with pytest.raises(ArgumentError, match="fun"):
        matrix_function("cosh", M, b)
    with pytest.raises(OperatorError, match="symmetric"):
        matrix_function("exp", torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.ones(2))
    bad = function_operator(lambda v: v * torch.nan, 3, symmetric=True)
    with pytest.raises(NonFiniteError):
        matrix_function("exp", bad, torch.ones(3))


@pytest.mark.parametrize("role", ["precision", "covariance"])
def test_draws_have_the_covariance_they_should(role):
    M, _ = spectral([0.5, 1.0, 2.0, 3.0])
    count = 4_000
    draws = sample_normal(M, count, role=role, generator=seeded(3))
    expected = torch.linalg.inv(M) if role == "precision" else M
    # Each entry of a sample covariance has a standard error of about sqrt(2 / count) of its size.
    tolerance = 5 * (2 / count) ** 0.5 * float(expected.diagonal().max())
    torch.testing.assert_close(torch.cov(draws.value), expected, rtol=0, atol=tolerance)
    assert (draws.standard_error <= 1e-7 * draws.value.norm(dim=0)).all()
