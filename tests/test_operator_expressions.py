# SPDX-License-Identifier: Apache-2.0
"""The algebra of operators is that of their matrices."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.curvature import hessian_operator
from hesse.errors import (
    ArgumentError,
    DtypeError,
    OperatorError,
    ShapeError,
    StructureError,
)
from hesse.estimators import norm as norm_of
from hesse.krylov import eigsh, svds
from hesse.operators import (
    aslinearoperator,
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
    low_rank_operator,
)
from hesse.testing import (
    CountingOperator,
    all_problems,
    check_operator,
)
from hesse.vectors.inner_products import norm
from hesse.vectors.space import Space
from tests.operator_matrices import N, close, matrix, symmetric

# --------------------------------------------------------------------------------------------------
# Algebra: an expression of operators is the same expression of matrices


def low_rank(seed):
    return low_rank_operator(matrix(seed, N, 2), matrix(seed + 1)[0, :2])


SHARED = dense_operator(matrix(10))

LEAVES = st.one_of(
    st.integers(0, 9).map(lambda seed: (dense_operator(matrix(seed)), matrix(seed))),
    st.integers(0, 9).map(lambda seed: (dense_operator(symmetric(seed)), symmetric(seed))),
    st.integers(0, 9).map(
        lambda seed: (diagonal_operator(matrix(seed)[0]), torch.diag(matrix(seed)[0]))
    ),
    st.just((identity_operator(N, torch.float64), torch.eye(N, dtype=torch.float64))),
    st.integers(0, 9).map(lambda seed: (low_rank(seed), low_rank(seed).to_dense())),
    st.just((SHARED, SHARED.matrix)),  # one object, so that expressions meet it again
)
SCALARS = st.sampled_from([-2.0, -1, 0, 0.5, 3, torch.tensor(3), torch.tensor(0.5).bfloat16()])
DIVISORS = st.sampled_from(
    [4, -3.0, torch.tensor(3), torch.tensor(7.0), np.float32(3), Fraction(3)]
)


def combine(children):
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: (p[0][0] + p[1][0], p[0][1] + p[1][1])),
        pairs.map(lambda p: (p[0][0] - p[1][0], p[0][1] - p[1][1])),
        pairs.map(lambda p: (p[0][0] @ p[1][0], p[0][1] @ p[1][1])),
        st.tuples(SCALARS, children).map(lambda p: (p[0] * p[1][0], p[0] * p[1][1])),
        children.map(lambda c: (c[0].T, c[1].T)),
        st.tuples(children, DIVISORS).map(lambda p: (p[0][0] / p[1], p[0][1] / float(p[1]))),
        children.map(lambda c: (c[0].T @ c[0], c[1].T @ c[1])),
        children.map(lambda c: (c[0] + c[0].T, c[1] + c[1].T)),
        children.map(lambda c: (-c[0], -c[1])),
    )


@given(st.recursive(LEAVES, combine, max_leaves=6), st.integers(0, 99))
@settings(max_examples=100)
def test_an_expression_of_operators_is_that_of_their_matrices(expression, seed):
    A, M = expression
    v, V = matrix(seed)[0], matrix(seed, N, 3)
    rtol = 1e-12  # of products of up to six factors, whose terms may cancel
    scale = max(1.0, float(M.norm())) * max(1.0, norm(v))
    assert norm(A @ v - M @ v) <= 100 * rtol * scale
    assert norm(A.T @ v - M.T @ v) <= 100 * rtol * scale
    assert close(A @ V, M @ V, 100 * rtol)
    assert close(A.to_dense(), M, 100 * rtol)
    assert abs(float(A.curvature(v)) - float(v @ M @ v)) <= 100 * rtol * scale * norm(v)
    assert not A.symmetric or close(M, M.T, 100 * rtol)


def test_rectangular_products_and_their_adjoints():
    A, B = matrix(0, 3, 4), matrix(1, 4, 2)
    product = dense_operator(A) @ dense_operator(B)
    assert product.shape == (3, 2)
    assert close(product.to_dense(), A @ B)
    assert close(product.T.to_dense(), (A @ B).T)
    gram = dense_operator(A).T @ dense_operator(A)
    check_operator(gram)
    assert close(gram.to_dense(), A.T @ A)
    assert product.T.T is product


def test_a_gram_operator_knows_that_it_is_symmetric():
    A = dense_operator(matrix(0, 3, 4))
    assert (A.T @ A).symmetric
    assert (A @ A.T).symmetric
    assert not (A @ dense_operator(matrix(1, 4, 3))).symmetric


def symmetric_expressions():
    """Forms that are symmetric whatever the matrices; R is not, H and D are."""
    R, H, D = (
        dense_operator(matrix(0)),
        dense_operator(symmetric(1)),
        diagonal_operator(matrix(2)[0]),
    )
    eye, S = identity_operator(N), dense_operator(matrix(3))
    A, F = H + 0.1 * eye, function_operator(lambda v: v * 2, N, symmetric=True, dtype=torch.float64)
    return {
        "A A": A @ A,
        "(2 R)'(2 R)": (2 * R).T @ (2 * R),
        "-R R'": -(R @ R.T),
        "(R + S)'(R + S)": (R + S).T @ (R + S),
        "(R S)'(R S)": (R @ S).T @ (R @ S),
        "R' H R": R.T @ H @ R,
        "R' (H R)": R.T @ (H @ R),
        "D H D": D @ H @ D,
        "F H D H F": F @ (H @ D @ H) @ F,
        "R + R'": R + R.T,
        "(R + R') / 2 - c I": (R + R.T) / 2 - 3 * eye,
        "R S + S' R'": R @ S + S.T @ R.T,
        "H (H + c I)": H @ (H + 2 * eye),
        "D D2": D @ diagonal_operator(matrix(4)[0]),
        "I R' R": eye @ R.T @ R,
        "another operator of the same matrix": dense_operator(R.matrix.T)
        @ dense_operator(R.matrix),
    }


@pytest.mark.parametrize("name", symmetric_expressions())
def test_expressions_know_that_they_are_symmetric(name):
    A = symmetric_expressions()[name]
    assert A.symmetric
    assert A.T is A
    assert (2 * A / 3 - A).symmetric
    check_operator(A)


def test_expressions_that_only_look_symmetric_are_not():
    R, S, H = dense_operator(matrix(0)), dense_operator(matrix(1)), dense_operator(symmetric(2))
    for A in (R @ R, R.T @ S, R.T @ H @ S, H @ dense_operator(symmetric(3)), R - R.T, R + 2 * R.T):
        assert not A.symmetric
    assert not (dense_operator(R.matrix.T.contiguous()) @ R).symmetric  # other memory
    assert not (R + S - S).symmetric  # the rounding errors of S stay


def test_a_long_expression_is_one_factor():
    parts = [dense_operator(matrix(seed)) for seed in range(70)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert not total.symmetric
    assert (total.T @ total).symmetric
    assert ((2 * total).T @ parts[0].T @ parts[0] @ (2 * total)).symmetric


@pytest.mark.parametrize("name", ["D H D", "A A", "(R S)'(R S)"])
def test_the_inverse_of_a_symmetric_product_is_symmetric(name):
    A = symmetric_expressions()[name]
    inverse = A._inverse()
    assert inverse.symmetric
    assert close(inverse.to_dense() @ A.to_dense(), torch.eye(N).double(), 1e-9)


def test_a_block_of_a_symmetric_expression_is_symmetric():
    tree = {"a": torch.ones(2).double(), "b": torch.ones(3).double()}
    space = Space.of(tree)
    M = matrix(0)
    R = function_operator(lambda v: M @ v, space, rmatvec=lambda u: M.T @ u)
    block = (R + R.T).block("a")
    assert block.symmetric
    assert (R.block("b").T @ R.block("b")).symmetric
    assert close(block.to_dense(), (M + M.T)[:2, :2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "c",
    [3, 3.0, Fraction(3), np.float32(3), np.array(3), np.int64(3)]
    + [torch.tensor(3, dtype=t) for t in (torch.int32, torch.int64, torch.bfloat16, torch.half)]
    + [torch.tensor(3.0), torch.tensor(3.0, requires_grad=True)],
)
def test_a_scalar_of_any_kind_costs_no_digits(c, dtype):
    one = dense_operator(torch.eye(2, dtype=dtype))
    third, triple = (one / c).to_dense(), (c * one).to_dense()
    assert third.dtype == triple.dtype == dtype
    assert float(abs(third[0, 0] - torch.ones((), dtype=dtype) / 3)) == 0.0
    assert float(triple[0, 0]) == 3.0


def test_what_is_no_number_does_not_scale():
    A = dense_operator(matrix(0))
    for wrong in (torch.ones(2), 1j, torch.tensor(1j), "2", None, np.ones(2)):
        with pytest.raises(OperatorError, match="a number"):
            A * wrong
        with pytest.raises(OperatorError, match="a number"):
            A / wrong
    for zero in (0, 0.0, torch.tensor(0)):
        with pytest.raises(ArgumentError, match="other than 0"):
            A / zero
    with pytest.raises(ArgumentError, match="range"):
        A * 10**400


def test_singular_values_and_norms_of_expressions():
    for A in (-dense_operator(symmetric(0)), 2 * SHARED, SHARED + SHARED, SHARED @ SHARED.T):
        exact = float(torch.linalg.matrix_norm(A.to_dense(), 2))
        assert float(svds(A, 2).S[0]) == pytest.approx(exact, rel=1e-8)
        assert norm_of(A, 2, rtol=1e-8).value == pytest.approx(exact, rel=1e-8)


def test_a_congruence_has_eigenvalues_and_what_is_not_known_says_what_to_do():
    M, H = diagonal_operator(matrix(0)[0].abs()), dense_operator(symmetric(1))
    exact = torch.linalg.eigvalsh((M @ H @ M).to_dense())[-1]
    assert close(eigsh(M @ H @ M, 1).values[0], exact, 1e-10)
    with pytest.raises(OperatorError, match=r"becomes hesse\.function_operator"):
        eigsh(M @ H, 1)


def test_an_identity_without_a_dtype_adapts_to_what_it_meets():
    tree = {"a": torch.ones(2).double(), "b": torch.ones(2, 1).double()}
    D, eye = diagonal_operator(tree), identity_operator(4)
    for A in (D + 0.5 * eye, 0.5 * eye + D, D - eye, eye - D, eye @ D, D @ eye, D + -eye):
        assert A.dtype == torch.float64
        assert set(A @ tree) == {"a", "b"}
    assert close((D + 0.5 * eye).to_dense(), 1.5 * torch.eye(4).double())


def test_a_block_is_the_principal_submatrix_and_keeps_its_names():
    problem = {p.name: p for p in all_problems()}["mlp_tanh"]
    H = hessian_operator(problem.f, problem.x)
    dense = H.to_dense()
    n = problem.x["0.weight"].numel()
    weight, layer = H.block("0.weight"), H.block("0")
    assert close(weight.to_dense(), dense[:n, :n])
    m = n + problem.x["0.bias"].numel()
    assert close(layer.to_dense(), dense[:m, :m])
    assert set(layer @ {"0.weight": problem.x["0.weight"], "0.bias": problem.x["0.bias"]}) == {
        "0.weight",
        "0.bias",
    }
    check_operator(layer)
    with pytest.raises(ArgumentError, match="name of a leaf"):
        H.block("3")


def test_expressions_compute_nothing_until_a_product_is_asked_for():
    A = CountingOperator(dense_operator(symmetric(0)))
    expression = 2 * A + A @ A - A.T / 3
    assert A.products == 0
    expression @ torch.ones(N).double()
    assert A.products == 4

    calls = []
    H = hessian_operator(lambda x: calls.append(1) or (x**3).sum(), torch.ones(2))
    H.at(torch.zeros(2))
    assert not calls
    assert float(H.value) == 2.0
    assert len(calls) == 1


def test_sum_takes_operators():
    matrices = [matrix(seed) for seed in range(3)]
    assert close(sum(dense_operator(M) for M in matrices).to_dense(), sum(matrices))
    for start in (1, 1.0, matrices[0]):
        with pytest.raises(OperatorError, match="identity_operator"):
            sum([dense_operator(matrices[0])], start)


def test_what_does_not_fit_is_refused():
    A = dense_operator(matrix(0))
    for wrong in (matrix(0), 2.0, None):
        with pytest.raises(OperatorError, match="identity_operator"):
            A + wrong
    with pytest.raises(OperatorError, match="a number"):
        A * matrix(0)
    with pytest.raises(ShapeError, match="dimensions"):
        A + dense_operator(matrix(0, 4, 4))
    with pytest.raises(ShapeError, match="dimensions"):
        A @ dense_operator(matrix(0, 4, 4))
    with pytest.raises(DtypeError, match="one dtype"):
        A + dense_operator(matrix(0).float())
    with pytest.raises(ShapeError, match="square"):
        dense_operator(matrix(0, 2, 3)).curvature(torch.ones(3).double())
    for V, error in ((matrix(0, 4, 2), ShapeError), ([1.0], StructureError)):
        with pytest.raises(error, match="V"):
            A.matmat(V)
    with pytest.raises(OperatorError, match="no _rmatvec"):
        function_operator(lambda v: v + 0, 3).T @ torch.ones(3)


def test_an_array_is_an_operator_and_a_product_with_an_array_is_one():
    A, v = aslinearoperator(2.0 * np.eye(2)), np.array([1.0, 3.0])
    assert isinstance(A @ v, np.ndarray)
    np.testing.assert_array_equal(A @ v, 2.0 * v)


def test_an_operator_of_scipy_is_symmetric_where_that_is_promised():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    A = linalg.aslinearoperator(np.diag([1.0, 2.0, 3.0]))
    with pytest.raises(OperatorError, match=r"in hesse\.aslinearoperator\(A, symmetric=True\)"):
        eigsh(A, 1)
    largest = eigsh(aslinearoperator(A, symmetric=True), 1).values
    torch.testing.assert_close(largest, torch.tensor([3.0], dtype=torch.float64))
