# SPDX-License-Identifier: Apache-2.0
"""Operators at points, in SciPy, and every kind against the promises of an operator."""

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from scipy.sparse import linalg as scipy_linalg

from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import (
    HesseError,
    StructureError,
)
from hesse.operators import (
    LinearOperator,
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
)
from hesse.risk.risk import Risk
from hesse.testing import (
    CountingOperator,
    all_problems,
    check_operator,
    dense_gradient,
    dense_hessian,
    problems,
)
from hesse.vectors.space import Space
from tests.operator_matrices import N, close, matrix, symmetric

# --------------------------------------------------------------------------------------------------
# Points


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "forward-over-reverse"])
def test_a_hessian_operator_is_that_of_its_point(mode):
    problem = problems.nested_tree()
    moved = problem.near(1)
    H = hessian_operator(problem.f, problem.x, mode=mode)
    H2 = H.at(moved.x)
    assert close(H.to_dense(), dense_hessian(problem.f, problem.x), 1e-12)
    assert close(H2.to_dense(), dense_hessian(problem.f, moved.x), 1e-12)
    assert close(H2.flat_gradient, dense_gradient(problem.f, moved.x), 1e-12)
    with pytest.raises(HesseError, match=r"at\(x\)"):
        H.at(torch.zeros(3).double())


def test_a_point_is_copied():
    x = torch.tensor([1.0, 2.0]).double()
    H = hessian_operator(lambda x: (x**3).sum(), x)
    x.zero_()
    assert torch.equal(H.to_dense(), torch.diag(torch.tensor([6.0, 12.0]).double()))
    d = torch.ones(2)
    D = diagonal_operator(d)
    d.zero_()
    assert torch.equal(D @ torch.ones(2), torch.ones(2))


def test_a_block_of_directions_is_told_from_a_point_of_two_dimensions():
    D = diagonal_operator({"w": torch.arange(3.0)[:, None]})
    assert torch.equal(D @ torch.ones(3, 1), torch.arange(3.0)[:, None])
    D = diagonal_operator(torch.arange(6.0).view(2, 3))
    assert (D @ torch.ones(2, 3)).shape == (2, 3)
    assert (D @ torch.ones(6, 3)).shape == (6, 3)
    assert (D @ torch.ones(6, 0)).shape == (6, 0)


# --------------------------------------------------------------------------------------------------
# SciPy


def test_scipy_sees_the_same_operator():
    M = matrix(0, 4, 6)
    A = dense_operator(M).to_scipy()
    x, u, X = np.arange(6.0), np.arange(4.0), np.arange(12.0).reshape(6, 2)
    assert A.dtype == np.float64
    np.testing.assert_allclose(A @ x, M.numpy() @ x, rtol=1e-14)
    np.testing.assert_allclose(A.T @ u, M.numpy().T @ u, rtol=1e-14)
    np.testing.assert_allclose(A @ X, M.numpy() @ X, rtol=1e-14)
    np.testing.assert_allclose(A @ (x + 2j), M.numpy() @ (x + 2j), rtol=1e-14)
    np.testing.assert_allclose(A.H @ (u - 1j * u), M.numpy().T @ (u - 1j * u), rtol=1e-14)
    H = hessian_operator(problems.quadratic(8).f, problems.quadratic(8).x)
    largest = scipy_linalg.eigsh(H.to_scipy(), k=1, return_eigenvectors=False)
    assert largest[0] == pytest.approx(100.0, rel=1e-10)
    solution, info = scipy_linalg.cg(H.to_scipy(), np.ones(8), rtol=1e-12)
    assert info == 0
    np.testing.assert_allclose(H.to_dense().numpy() @ solution, np.ones(8), rtol=1e-9)


# --------------------------------------------------------------------------------------------------
# Every kind keeps the promises


def risk_operator(make, dtype):
    x, y = torch.randn(7, 3, dtype=dtype), torch.arange(7) % 2
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    risk = Risk(net.to(dtype), torch.nn.CrossEntropyLoss(), [(x[:4], y[:4]), (x[4:], y[4:])], 0.1)
    return make(risk, risk.params)


KINDS = {
    "symmetric": lambda dtype: dense_operator(symmetric(0).to(dtype)),
    "dense": lambda dtype: dense_operator(matrix(0, dtype=dtype)),
    "wide": lambda dtype: dense_operator(matrix(0, 3, 40, dtype)),
    "tall": lambda dtype: dense_operator(matrix(0, 40, 3, dtype)),
    "diagonal": lambda dtype: diagonal_operator({"a": matrix(0, dtype=dtype)}),
    "identity": lambda dtype: identity_operator(4, dtype),
    "function": lambda dtype: function_operator(
        lambda v: v.flip(0), 4, symmetric=True, dtype=dtype
    ),
    "one way": lambda dtype: function_operator(lambda v: v.cumsum(0), 4, dtype=dtype),
    "sum": lambda dtype: dense_operator(matrix(0, dtype=dtype)) + 2 * identity_operator(N),
    "product": lambda dtype: KINDS["wide"](dtype) @ KINDS["wide"](dtype).T,
    "transposed": lambda dtype: KINDS["wide"](dtype).T,
    "hessian of a risk": lambda dtype: risk_operator(hessian_operator, dtype),
    "gauss-newton": lambda dtype: risk_operator(ggn_operator, dtype),
    "block": lambda dtype: risk_operator(ggn_operator, dtype).block("0"),
    "counting": lambda dtype: CountingOperator(KINDS["dense"](dtype)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_operator_conforms(kind, dtype):
    A = KINDS[kind](dtype)
    assert A.dtype == dtype
    report = check_operator(A)
    assert (report.symmetry is not None) == A.symmetric
    assert (report.adjoint is None) == (A.symmetric or kind == "one way")


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("problem", all_problems(), ids=str)
def test_the_hessian_of_every_problem_conforms(problem):
    H = hessian_operator(problem.f, problem.x)
    check_operator(H)
    expected = dense_hessian(problem.f, problem.x)
    assert close(H.to_dense(), expected, 1e-10)


def test_leaves_of_two_dtypes_make_one_vector():
    x = {"a": torch.randn(2), "b": torch.randn(2).double()}
    H = hessian_operator(lambda x: (x["a"].double() ** 3).sum() * (x["b"] ** 2).sum(), x)
    assert H.dtype == torch.float64
    assert (H @ x)["a"].dtype == torch.float32
    check_operator(H)


class Laplacian(LinearOperator):
    """The smallest operator that a user would write."""

    def _matvec(self, v):
        return (
            2 * v - torch.nn.functional.pad(v, (1, 0))[:-1] - torch.nn.functional.pad(v, (0, 1))[1:]
        )


def test_an_operator_of_ones_own_takes_part():
    A = Laplacian(Space.flat(6, torch.float64), symmetric=True)
    check_operator(A + 0.1 * identity_operator(6))
    assert float(torch.linalg.eigvalsh(A.to_dense()).min()) > 0


def test_a_sum_of_identities_takes_the_space_it_meets():
    eye = identity_operator(2)
    A = diagonal_operator(torch.ones(2, dtype=torch.float64))
    expected = 4 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close((A + (eye + 2 * eye)).to_dense(), expected)


SUMS_WITH_IDENTITIES = {  # in the space of A, whatever comes next
    "sum": lambda A, eye: A + 0.5 * eye,
    "product": lambda A, eye: A @ (eye + 2 * eye),
    "from the left": lambda A, eye: (2 * eye) @ A,
    "transposed": lambda A, eye: (A + eye).T,
    "negative": lambda A, eye: -1.0 * (eye @ A @ eye - eye),
}


@pytest.mark.parametrize("first", SUMS_WITH_IDENTITIES)
@pytest.mark.parametrize("then", SUMS_WITH_IDENTITIES)
def test_identities_are_added_and_multiplied_one_after_the_other(first, then):
    def both(A, eye):
        return SUMS_WITH_IDENTITIES[then](SUMS_WITH_IDENTITIES[first](A, eye), eye)

    M, whole = matrix(3), torch.eye(N, dtype=torch.float64)
    found = both(dense_operator(M), identity_operator(N)).to_dense()
    torch.testing.assert_close(found, both(M, whole))


def test_a_small_asymmetry_beside_a_large_entry_is_seen():
    M = torch.tensor([[1e8, 0.0, 0.0], [0.0, 1.0, 5.0], [0.0, 0.0, 1.0]])
    assert not dense_operator(M).symmetric
    assert torch.equal(dense_operator(M).T @ M[1], M.T @ M[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_matrix_in_half_precision_takes_vectors_of_float32(dtype):
    A = dense_operator(2 * torch.eye(3, dtype=dtype))
    assert torch.equal(A @ torch.ones(3), torch.full((3,), 2.0))


def test_a_sparse_matrix_is_refused():
    with pytest.raises(StructureError, match="a dense matrix"):
        dense_operator(torch.eye(3).to_sparse())


@pytest.mark.parametrize("pattern", ["*.weight", "encoder.*", "*", "[ed]*.bias", "encoder"])
def test_a_block_of_the_leaves_that_match_a_pattern(pattern):
    shapes = {"encoder.weight": (2, 3), "encoder.bias": (2,), "decoder.weight": (3, 2)}
    x = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    x["decoder.bias"] = torch.randn(3, dtype=torch.float64)

    def f(p):
        hidden = torch.tanh(p["encoder.weight"] @ torch.arange(3.0).double() + p["encoder.bias"])
        return (p["decoder.weight"] @ hidden + p["decoder.bias"]).square().sum()

    H = hessian_operator(f, x)
    starts, index = 0, []
    for name, leaf in x.items():
        if fnmatchcase(name, pattern) or name.startswith(f"{pattern}."):
            index += range(starts, starts + leaf.numel())
        starts += leaf.numel()
    expected = H.to_dense()[index][:, index]
    for block in (H.block(pattern), hessian_operator(f, x, with_respect_to=pattern)):
        assert torch.allclose(block.to_dense(), expected, rtol=0, atol=1e-12)
    diagonal = diagonal_operator(x).block(pattern)
    assert torch.equal(diagonal.diagonal, diagonal_operator(x).diagonal[index])
    v = {name: x[name] for name in H.block(pattern).domain.names}
    assert set(H.block(pattern) @ v) == set(v)
