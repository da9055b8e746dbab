# SPDX-License-Identifier: Apache-2.0
"""What the structure of a sparse Hessian gives, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

import hesse
from hesse import sparse_hessian_operator
from hesse.errors import (
    ArgumentError,
    DerivativeError,
    NonFiniteError,
    OperatorError,
    ShapeError,
)
from hesse.testing import check_operator
from hesse.tracing.sparsity import detect
from hesse.tracing.sparsity.rules import complex_numbers, separable
from tests.smooth_functions import rosenbrock
from tests.sparse_functions import DOUBLE, bratu, constant, dense_of, point

# --------------------------------------------------------------------------------------------------
# What the structure gives


def shifted(n=30, c=0.0):
    """A chain: positive definite for c = 0, indefinite for smaller c."""

    def f(x):
        return ((x[1:] - x[:-1]) ** 2).sum() / 2 + (c + 0.1) / 2 * (x**2).sum()

    return sparse_hessian_operator(f, torch.zeros(n, dtype=DOUBLE))


@pytest.mark.parametrize("c", [0.0, -0.6, -2.0])
def test_solutions_and_inertia_by_the_factors(c):
    S, b = shifted(c=c), point(30, 1)
    dense = S.to_dense()
    solution = hesse.solve(S, b)
    assert (solution.method, solution.converged, solution.products) == ("direct", True, 1)
    torch.testing.assert_close(solution.x, torch.linalg.solve(dense, b))
    values = torch.linalg.eigvalsh(dense)
    assert S.inertia == (int((values > 0).sum()), int((values < 0).sum()))
    sign, logabs = torch.linalg.slogdet(dense)
    torch.testing.assert_close(constant(S._logdet()), torch.stack([sign, logabs]))
    inverse = hesse.inverse_operator(S)
    torch.testing.assert_close(inverse.to_dense(), torch.linalg.inv(dense))
    check_operator(inverse)


def test_trace_diagonal_and_damping():
    S = shifted(c=-0.6)
    dense, b = S.to_dense(), point(30, 1)
    assert S._trace() == pytest.approx(float(dense.trace()))
    torch.testing.assert_close(S._diagonal(), dense.diagonal())
    d = hesse.diagonal_operator(point(30, 2))
    for A, expected in [
        (S + 2.0 * hesse.identity_operator(30), dense + 2 * torch.eye(30, dtype=DOUBLE)),
        (S + d, dense + d.to_dense()),
        (2.0 * S + d, 2 * dense + d.to_dense()),
    ]:
        solution = hesse.solve(A, b)
        assert (solution.method, solution.products) == ("direct", 1)
        torch.testing.assert_close(solution.x, torch.linalg.solve(expected, b))
    damped = hesse.solve(S, b, damping=2.0)
    assert damped.method == "direct"


def test_rows_are_exchanged_where_the_diagonal_is_zero():
    S = sparse_hessian_operator(lambda x: (x[:10] * x[10:] ** 2).sum(), point(20))
    S = S.at(torch.cat([torch.zeros(10, dtype=DOUBLE), point(10) + 1]))
    dense = S.to_dense()
    assert not dense.diagonal().any()
    torch.testing.assert_close(hesse.inverse_operator(S).to_dense(), torch.linalg.inv(dense))
    sign, logabs = torch.linalg.slogdet(dense)
    torch.testing.assert_close(constant(S._logdet()), torch.stack([sign, logabs]))
    with pytest.raises(OperatorError, match="not stable"):
        _ = S.inertia


def test_a_singular_matrix_has_no_inverse():
    S = sparse_hessian_operator(lambda x: ((x[1:] - x[:-1]) ** 2).sum(), point(12))
    assert S._inverse() is None
    assert S._logdet() is None
    with pytest.raises(OperatorError, match="singular"):
        _ = S.inertia
    b = S @ point(12, 1)
    assert hesse.solve(S, b).converged


def test_single_precision_is_factorised_in_double():
    S = sparse_hessian_operator(
        lambda x: ((x[1:] - x[:-1]) ** 2).sum() + 0.01 * (x**2).sum(), torch.ones(50)
    )
    b = torch.ones(50)
    x = hesse.solve(S, b, rtol=1e-4)
    assert x.method == "direct"
    torch.testing.assert_close(x.x, torch.linalg.solve(S.to_dense().double(), b.double()).float())


def test_the_matrix_for_scipy_is_a_copy():
    S = sparse_hessian_operator(rosenbrock, point(20))
    matrix = S.to_scipy()
    assert isinstance(matrix, sp.csr_array)
    np.testing.assert_array_equal(matrix.toarray(), S.to_dense().numpy())
    matrix.data[:] = 0.0
    assert S.to_dense().any()


def test_newton_on_bratu():
    u = torch.zeros(20**2, dtype=DOUBLE)
    S = sparse_hessian_operator(bratu, u)
    start = S.flat_gradient.norm()
    for _ in range(8):
        u = u - hesse.solve(S, S.flat_gradient).x
        S = S.at(u)
    assert S.flat_gradient.norm() < 1e-11 * start
    assert S.inertia.negative == 0


def test_what_is_printed():
    S = sparse_hessian_operator(bratu, point(30**2))
    lines = repr(S).splitlines()
    assert lines[0] == "SparseHessian(900 x 900, torch.float64)"
    assert "5 instead of 900" in repr(S)
    assert len(lines) < 16
    assert max(map(len, lines)) < 60
    assert "<table" in S._repr_html_()


# --------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("f", "name", "rules"),
    [
        (lambda x: F.avg_pool2d(x.view(1, 1, 4, 4), 2).pow(3).sum(), "avg_pool2d", separable),
        (lambda x: torch.fft.rfft(x).abs().pow(3).sum(), "view_as_complex", complex_numbers),
    ],
)
def test_an_unknown_operation_is_named(f, name, rules, monkeypatch):
    known = tuple(rule for rule in detect.RULES if rule is not rules.patterns)
    monkeypatch.setattr(detect, "RULES", known)
    with pytest.raises(DerivativeError, match=f"{name}.* no rule") as error:
        sparse_hessian_operator(f, point(16))
    assert "pattern=" in str(error.value)
    assert "hesse.sparse_hessian_operator(f, x)" in str(error.value)


def test_a_pattern_that_is_given():
    def f(x):
        return (torch.linalg.solve(torch.eye(2, dtype=DOUBLE) + x.view(-1, 2, 2) ** 2,
                                   torch.ones(1, 2, 1, dtype=DOUBLE)) ** 2).sum()  # fmt: skip

    blocks = sp.block_diag([np.ones((4, 4))] * 3)
    x = point(12)
    S = sparse_hessian_operator(f, x, pattern=blocks)
    assert S.num_products == 4
    torch.testing.assert_close(S.to_dense(), dense_of(f, x))
    torch.testing.assert_close(S.at(point(12, 1)).to_dense(), dense_of(f, point(12, 1)))
    with pytest.raises(DerivativeError, match="entries outside of the pattern"):
        sparse_hessian_operator(f, x, pattern=np.eye(12))
    with pytest.raises(ShapeError, match="pattern of shape"):
        sparse_hessian_operator(f, x, pattern=np.eye(3))


def test_the_first_numbers_of_seed_zero_are_a_point_as_any_other():
    def f(x):  # homogeneous of degree one: H x = 0
        return x.view(-1, 3).norm(dim=1).sum()

    x = torch.randn(12, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sparse_hessian_operator(f, x).to_dense(), dense_of(f, x))


def test_a_dense_hessian_is_refused_before_it_fills_the_memory():
    with pytest.raises(DerivativeError, match="sparse Hessian"):
        sparse_hessian_operator(lambda x: (x**2).sum() ** 2, torch.ones(20_000))


def test_what_cannot_be_traced_is_refused():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    with pytest.raises(DerivativeError, match="Square"):
        sparse_hessian_operator(lambda x: Square.apply(x).sum(), point(3))


def test_not_finite():
    with pytest.raises(NonFiniteError):
        sparse_hessian_operator(lambda x: (x.abs() ** 1.5).sum(), torch.zeros(3))


def test_choices():
    for wrong in ({"colouring": "rainbow"}, {"mode": "retained-graph"}):
        with pytest.raises(ArgumentError):
            sparse_hessian_operator(rosenbrock, point(3), **wrong)
