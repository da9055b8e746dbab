"""The inverse as an operator: exact or solved for, and an error rather than a wrong product."""

import pytest
import torch

from hesse.curvature import hessian_operator
from hesse.errors import OperatorError, ShapeError
from hesse.krylov.inverse import SolvingOperator, inverse_operator
from hesse.operators import diagonal_operator, function_operator
from hesse.testing import CountingOperator, check_operator

DOUBLE = torch.float64


def positive(n, seed=0):
    M = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return M @ M.T / n + torch.eye(n, dtype=DOUBLE)


def test_structure_gives_it_exactly():
    inverse = inverse_operator(diagonal_operator(torch.tensor([2.0, 4.0])))
    torch.testing.assert_close(inverse.to_dense(), torch.diag(torch.tensor([0.5, 0.25])))


@pytest.mark.parametrize("symmetric", [True, False])
def test_else_a_system_is_solved_for_every_product(symmetric):
    M = positive(20) if symmetric else positive(20) + 0.1 * torch.triu(positive(20, 1))
    A = CountingOperator(
        function_operator(
            lambda v: M @ v, 20, symmetric=symmetric, rmatvec=lambda u: M.T @ u, dtype=DOUBLE
        )
    )
    inverse = inverse_operator(A)
    assert isinstance(inverse, SolvingOperator)
    torch.testing.assert_close(inverse.to_dense(), torch.linalg.inv(M), rtol=0, atol=1e-8)
    assert inverse.products == A.products
    check_operator(inverse, rtol=1e-6)
    assert inverse._inverse() is A


def test_of_a_hessian_with_a_preconditioner():
    M = positive(30)
    H = hessian_operator(lambda x: 0.5 * x @ (M @ x), torch.ones(30, dtype=DOUBLE))
    inverse = inverse_operator(H, preconditioner="jacobi")
    b = torch.ones(30, dtype=DOUBLE)
    torch.testing.assert_close(inverse @ b, torch.linalg.solve(M, b), rtol=1e-6, atol=0)


def test_a_system_that_is_not_solved_is_an_error():
    singular = function_operator(lambda v: v * torch.tensor([1.0, 0.0]), 2, symmetric=True)
    with pytest.raises(OperatorError, match="damping"):
        inverse_operator(singular) @ torch.ones(2)
    with pytest.raises(ShapeError, match="square"):
        inverse_operator(torch.ones(2, 3))
