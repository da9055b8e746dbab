"""Functions of a matrix, and draws from a Gaussian, by the Lanczos process."""

import math

import pytest
import torch

from hesse.errors import ArgumentError, NonFiniteError, OperatorError, Status
from hesse.estimators.matrix_function import matrix_function
from hesse.estimators.sample_normal import sample_normal
from hesse.operators import dense_operator, diagonal_operator, function_operator
from hesse.testing import CountingOperator, PeakMemory, symmetric_matrix

DOUBLE = torch.float64
EXACT = {
    "sqrt": torch.sqrt,
    "inverse-sqrt": torch.rsqrt,
    "inverse": torch.reciprocal,
    "exp": torch.exp,
    "log": torch.log,
    "sign": torch.sign,
}


class Blocks(CountingOperator):
    """The widths of the blocks of products; a Ctrl-C comes at one of them."""

    def __init__(self, A, interrupted_at=None):
        super().__init__(A)
        self.widths, self.interrupted_at = [], interrupted_at

    def _matmat(self, block):
        if len(self.widths) == self.interrupted_at:
            raise KeyboardInterrupt
        self.widths.append(block.shape[1])
        return super()._matmat(block)


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


def mixed_block(n=300):
    """diag(1, ..., 9), and columns that take from no step to many."""
    d = torch.linspace(1.0, 9.0, n, dtype=DOUBLE)
    A = function_operator(lambda v: d * v, n, symmetric=True, dtype=DOUBLE)
    B = torch.randn(n, 6, generator=seeded(4), dtype=DOUBLE)
    B[:, 1] = 0.0
    B[1:, 2] = 0.0  # an eigenvector
    B[:, 4] *= torch.logspace(0, -12, n, dtype=DOUBLE)
    return A, B


LIMITS = {
    "none": {},
    "rtol": {"rtol": 1e-3},
    "basis_size": {"basis_size": 11},
    "max_products": {"max_products": 10},
    "callback": {"callback": lambda state: state.products >= 8},
}


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("block_size", [1, 4, 6])
@pytest.mark.parametrize("limit", LIMITS)
def test_columns_go_together_and_end_as_each_would_alone(limit, block_size):
    A, B = mixed_block()
    alone = [matrix_function("inverse-sqrt", A, b, **LIMITS[limit]) for b in B.T]
    counted = Blocks(A)
    block = matrix_function("inverse-sqrt", counted, B, block_size=block_size, **LIMITS[limit])
    for j, one in enumerate(alone):
        torch.testing.assert_close(block.value[:, j], one.value)
        assert float(block.standard_error[j]) == pytest.approx(one.standard_error, rel=1e-8)
    steps = [one.products for one in alone]
    assert block.products == counted.products == sum(steps)
    assert steps[1:3] == [0, 1]
    assert len(set(steps)) >= 3
    groups = [steps[i : i + block_size] for i in range(0, len(steps), block_size)]
    widths = [sum(m > step for m in group) for group in groups for step in range(max(group))]
    assert counted.widths == widths
    ends = [one.status for one in alone if one.status is not Status.CONVERGED]
    assert block.status is (ends[0] if ends else Status.CONVERGED)


def test_eight_draws_take_as_many_blocks_of_products_as_one_takes_products():
    A = Blocks(dense_operator(symmetric_matrix(torch.linspace(1.0, 4.0, 200, dtype=DOUBLE))))
    one = sample_normal(A, generator=seeded())
    A.widths.clear()
    eight = sample_normal(A, 8, generator=seeded())
    assert abs(len(A.widths) - one.products) <= 4
    assert sum(A.widths) == eight.products
    A.widths.clear()
    by_two = sample_normal(A, 8, generator=seeded(), block_size=2)
    assert (max(A.widths), sum(A.widths)) == (2, eight.products)
    torch.testing.assert_close(by_two.value, eight.value)


@pytest.mark.parametrize("together", [1, 3])
def test_the_columns_that_go_together_fit_into_the_budget(together):
    n, steps = 5_000, 20
    A = Blocks(diagonal_operator(torch.logspace(-3, 0, n, dtype=DOUBLE)))
    B = torch.randn(n, 5, generator=seeded(), dtype=DOUBLE)
    budget = together * (steps + 3) * n * 8
    with PeakMemory() as memory:
        estimate = matrix_function("sqrt", A, B, basis_size=steps, memory_budget=budget)
    assert estimate.products == 5 * steps
    assert max(A.widths) == together
    # T, the overlaps that it predicts, and what passes over the basis have removed
    recurrence = together * 10 * (steps + 1) ** 2 * 8
    assert memory.peak <= budget + 2 * B.nbytes + recurrence + 10_000  # small tensors
    with pytest.raises(ArgumentError, match=r"920,000 bytes, for 20 steps"):
        matrix_function("sqrt", A, B, basis_size=steps, memory_budget=23 * n * 8 - 1)


def test_ctrl_c_returns_the_columns_as_they_are():
    M = symmetric_matrix(torch.logspace(-4, 0, 100, dtype=DOUBLE))
    B = torch.randn(100, 6, generator=seeded(), dtype=DOUBLE)
    whole = matrix_function("sqrt", M, B)
    first = matrix_function("sqrt", M, B[:, :2])
    A = Blocks(dense_operator(M))
    matrix_function("sqrt", A, B[:, :2])
    A = Blocks(dense_operator(M), interrupted_at=len(A.widths) + 9)
    broken = matrix_function("sqrt", A, B, block_size=2)
    assert broken.status is Status.INTERRUPTED
    assert broken.products == A.products == first.products + 2 * 9
    torch.testing.assert_close(broken.value[:, :2], first.value)
    error = (broken.value - whole.value).norm(dim=0)
    assert (error[2:4] <= broken.standard_error[2:4]).all()
    assert (broken.value[:, 4:] == 0.0).all()
    assert broken.standard_error[4:].tolist() == [math.inf] * 2
    with pytest.raises(KeyboardInterrupt):  # before the first look at any
        matrix_function("sqrt", Blocks(dense_operator(M), interrupted_at=3), B)


def test_without_time_every_column_takes_a_step():
    A, B = mixed_block()
    hurried = matrix_function("sqrt", A, B, max_seconds=1e-9, block_size=4)
    assert (hurried.status, hurried.products) == (Status.MAX_SECONDS, 5)
    assert bool(hurried.standard_error.isfinite().all())
    assert matrix_function("sqrt", A, B[:, :0]).value.shape == (300, 0)


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
    # Many copies of M, as blocks of one operator: a draw from all is a draw from each.
    copies, count = 1000, 20
    A = function_operator(
        lambda v: (v.view(copies, 4) @ M).flatten(), 4 * copies, symmetric=True, dtype=DOUBLE
    )
    draws = sample_normal(A, count, role=role, generator=seeded(3))
    samples = draws.value.T.reshape(copies * count, 4)
    expected = torch.linalg.inv(M) if role == "precision" else M
    # Each entry of a sample covariance has a standard error of about sqrt(2 / samples) of its size.
    tolerance = 5 * (2 / len(samples)) ** 0.5 * float(expected.diagonal().max())
    torch.testing.assert_close(torch.cov(samples.T), expected, rtol=0, atol=tolerance)
    # Draws have nothing to do with one another.
    assert (
        float((torch.corrcoef(draws.value.T) - torch.eye(count)).abs().max())
        < 5 / (4 * copies) ** 0.5
    )
    assert (draws.standard_error <= 1e-7 * draws.value.norm(dim=0)).all()
