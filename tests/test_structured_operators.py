# SPDX-License-Identifier: Apache-2.0
"""Structured operators against dense matrices; inverses and diagonals that cost no product."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hesse.errors import (
    ArgumentError,
    DtypeError,
    HesseError,
    OperatorError,
    ShapeError,
    StructureError,
)
from hesse.krylov import solve
from hesse.operators import (
    block_diagonal_operator,
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
    kronecker_operator,
    low_rank_operator,
)
from hesse.testing import CountingOperator, check_operator

DOUBLE = torch.float64
N = 6


def matrix(seed, m=N, n=N, dtype=DOUBLE):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=DOUBLE).to(dtype)


def definite(seed, n=N, dtype=DOUBLE):
    M = matrix(seed, n, n)
    return (M @ M.T / n + torch.eye(n, dtype=DOUBLE)).to(dtype)


def indefinite(seed, n=N, dtype=DOUBLE):
    """Symmetric with the eigenvalues 1, -2, 3, ...: far from singular."""
    Q, _ = torch.linalg.qr(matrix(seed, n, n))
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0).double()
    M = Q @ torch.diag(signs * torch.arange(1.0, n + 1).double()) @ Q.T
    return ((M + M.T) / 2).to(dtype)


def diagonal(seed, n=N, dtype=DOUBLE):
    return (1.0 + matrix(seed, 1, n)[0] ** 2).to(dtype)


def low_rank(seed, r=2, signed=False, dtype=DOUBLE):
    s = matrix(seed + 1, 1, r)[0] if signed else diagonal(seed, r)
    return low_rank_operator(matrix(seed, N, r, dtype), s.to(dtype))


def identity(dtype=DOUBLE):
    return identity_operator(N, dtype)


# --------------------------------------------------------------------------------------------------
# The new operators are the matrices that they say


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_blocks_on_the_diagonal_are_those_of_torch(shapes):
    blocks = [matrix(seed, m, n) for seed, (m, n) in enumerate(shapes)]
    A = block_diagonal_operator(blocks)
    expected = torch.block_diag(*blocks)
    torch.testing.assert_close(A.to_dense(), expected)
    torch.testing.assert_close(A.T.to_dense(), expected.T)
    check_operator(A)


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(0, 99))
def test_a_kronecker_product_is_that_of_torch(shape, seed):
    m, n, p, q = shape
    a, b = matrix(seed, m, n), matrix(seed + 1, p, q)
    A = kronecker_operator(a, b)
    expected = torch.kron(a, b)
    torch.testing.assert_close(A.to_dense(), expected)
    torch.testing.assert_close(A.T.to_dense(), expected.T)
    X = matrix(seed + 2, n, q)
    torch.testing.assert_close(A @ X.reshape(-1), (a @ X @ b.T).reshape(-1))
    check_operator(A)


@given(st.integers(0, 99), st.integers(1, 8), st.booleans())
def test_a_low_rank_operator_is_the_product_of_its_factors(seed, r, signed):
    A = low_rank(seed, r, signed)
    expected = A.U @ torch.diag(A.s) @ A.U.T
    torch.testing.assert_close(A.to_dense(), expected)
    torch.testing.assert_close(A._diagonal(), expected.diagonal())
    check_operator(A)


def test_named_blocks_make_a_tree():
    inner = diagonal_operator({"x": diagonal(0, 2), "y": diagonal(1, 3)})
    A = block_diagonal_operator({"first": inner, "second": definite(0, 2)})
    assert A.domain.names == ("first.x", "first.y", "second")
    v = {
        "second": torch.ones(2).double(),
        "first": {"x": torch.ones(2).double(), "y": matrix(0)[0, :3]},
    }
    product = A @ v
    torch.testing.assert_close(product["second"], definite(0, 2).sum(1))
    torch.testing.assert_close(product["first"]["y"], diagonal(1, 3) * matrix(0)[0, :3])
    torch.testing.assert_close(A.block("second").to_dense(), definite(0, 2))
    check_operator(A)
    check_operator(A._inverse())


def test_a_kronecker_product_costs_what_it_says():
    a, b = (CountingOperator(dense_operator(matrix(0, m, n))) for m, n in ((2, 3), (4, 5)))
    kronecker_operator(a, b) @ torch.ones(15, dtype=DOUBLE)
    assert (a.products, b.products) == (4, 3)


# --------------------------------------------------------------------------------------------------
# Inverses and diagonals

INVERTIBLE = {
    "diagonal": lambda dt: diagonal_operator(diagonal(0, dtype=dt)),
    "diagonal on a tree": lambda dt: diagonal_operator({"a": diagonal(0, dtype=dt)}),
    "identity": identity,
    "scaled": lambda dt: -3.0 * diagonal_operator(diagonal(0, dtype=dt)),
    "definite": lambda dt: dense_operator(definite(0, dtype=dt)),
    "indefinite": lambda dt: dense_operator(indefinite(0, dtype=dt)),
    "general": lambda dt: dense_operator(definite(0, dtype=dt) @ definite(1, dtype=dt)),
    "dense + c I": lambda dt: dense_operator(definite(0, dtype=dt)) + 0.5 * identity_operator(N),
    "D + dense": lambda dt: (
        diagonal_operator({"a": diagonal(1, dtype=dt)}) + dense_operator(definite(0, dtype=dt))
    ),
    "2 (dense + D) - c I": lambda dt: (
        2.0 * (dense_operator(definite(0, dtype=dt)) + diagonal_operator(diagonal(1, dtype=dt)))
        - 0.5 * identity(dt)
    ),
    "dense' + c I": lambda dt: (
        dense_operator(definite(0, dtype=dt) @ definite(1, dtype=dt)).T + identity(dt)
    ),
    "I + D": lambda dt: identity(dt) + diagonal_operator(diagonal(0, dtype=dt)),
    "low rank + c I": lambda dt: low_rank(0, dtype=dt) + 0.1 * identity_operator(N),
    "low rank + D": lambda dt: (
        low_rank(0, 3, dtype=dt) + diagonal_operator({"a": diagonal(1, dtype=dt)})
    ),
    "signed low rank + D + c I": lambda dt: (
        0.3 * low_rank(0, 3, signed=True, dtype=dt)
        + diagonal_operator(diagonal(1, dtype=dt))
        + 4.0 * identity_operator(N)
    ),
    "rank beyond n": lambda dt: low_rank(0, 9, dtype=dt) + identity(dt),
    "blocks": lambda dt: block_diagonal_operator(
        [definite(0, 2, dt), indefinite(1, 3, dt), torch.ones(1, 1, dtype=dt)]
    ),
    "blocks + c I": lambda dt: (
        block_diagonal_operator({"a": definite(0, 2, dt), "b": definite(1, 4, dt)})
        + 0.5 * identity_operator(N)
    ),
    "kronecker": lambda dt: kronecker_operator(definite(0, 2, dt), indefinite(0, 3, dt)),
    "general kronecker": lambda dt: kronecker_operator(
        definite(0, 2, dt) @ definite(1, 2, dt), definite(0, 3, dt)
    ),
    "kronecker + c I": lambda dt: (
        kronecker_operator(definite(0, 2, dt), definite(0, 3, dt)) + 0.7 * identity_operator(N)
    ),
    "product": lambda dt: (
        dense_operator(definite(0, dtype=dt)) @ diagonal_operator(diagonal(0, dtype=dt))
    ),
    "square": lambda dt: INVERTIBLE["indefinite"](dt) @ INVERTIBLE["indefinite"](dt),
    "gram": lambda dt: INVERTIBLE["general"](dt).T @ INVERTIBLE["general"](dt),
    "transposed": lambda dt: INVERTIBLE["general"](dt).T,
    "block of a diagonal": lambda dt: diagonal_operator(
        {"a": diagonal(0, dtype=dt), "b": diagonal(1, dtype=dt)}
    ).block("b"),
    "block of a sum": lambda dt: (
        diagonal_operator({"a": diagonal(0, dtype=dt), "b": diagonal(1, dtype=dt)})
        + 2.0 * identity_operator(2 * N)
    ).block("a"),
}


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("kind", INVERTIBLE)
def test_an_inverse_is_the_inverse_and_conforms(kind, dtype):
    A = INVERTIBLE[kind](dtype)
    inverse = A._inverse()
    assert inverse is not None
    assert inverse.symmetric == A.symmetric
    assert inverse.domain.common(A.codomain).names == inverse.domain.names
    exact = torch.linalg.inv(A.to_dense().double())
    # Condition numbers stay below 1e3 ("gram"), and so does what they make of eps.
    error = (inverse.to_dense().double() - exact).norm() / exact.norm()
    assert float(error) <= 1e3 * torch.finfo(dtype).eps
    check_operator(inverse)


@pytest.mark.parametrize("kind", INVERTIBLE)
def test_a_diagonal_is_the_diagonal_where_there_is_one(kind):
    A = INVERTIBLE[kind](DOUBLE)
    d = A._diagonal()
    if kind in ("square", "gram"):
        assert d is None
    else:
        torch.testing.assert_close(d, A.to_dense().diagonal())


@given(st.integers(0, 999), st.integers(1, 6), st.floats(1e-3, 1e3), st.booleans())
def test_woodbury_is_the_inverse(seed, r, c, signed):
    A = low_rank(seed, r, signed) + diagonal_operator(c * diagonal(seed))
    inverse = A._inverse()
    M = A.to_dense()
    # The error is that of inverting the diagonal: eps |A| / min d, beside the condition of A.
    bound = 1e2 * torch.linalg.cond(M) * (1.0 + M.norm() / c) * torch.finfo(DOUBLE).eps
    error = (inverse.to_dense() @ M - torch.eye(N, dtype=DOUBLE)).norm()
    assert float(error) <= float(bound)
    torch.testing.assert_close(inverse._diagonal(), inverse.to_dense().diagonal())


@given(
    st.integers(0, 999), st.integers(2, 8), st.booleans(), st.sampled_from([torch.float32, DOUBLE])
)
def test_a_dense_matrix_is_inverted_unless_it_is_singular(seed, n, symmetric, dtype):
    U = matrix(seed, n, n - 1)
    singular = (U @ U.T if symmetric else U @ matrix(seed + 1, n - 1, n)).to(dtype)
    if symmetric:
        singular = (singular + singular.T) / 2
    # Its smallest singular value is its rounding error, of the order of eps.
    if float(torch.linalg.cond(singular.double())) * torch.finfo(dtype).eps > 1.0:
        assert dense_operator(singular)._inverse() is None
    assert dense_operator(singular + 10 * torch.eye(n, dtype=dtype))._inverse() is not None


@pytest.mark.parametrize(
    "A",
    [
        diagonal_operator(torch.tensor([1.0, 0.0])),
        0.0 * identity_operator(2),
        dense_operator(torch.zeros(2, 2)),
        dense_operator(torch.ones(3, 3)),
        dense_operator(torch.tensor([[1.0, 2.0], [2.0, 4.0]])),
        dense_operator(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])),
        dense_operator(torch.eye(2)) - identity_operator(2),
        low_rank_operator(torch.eye(2), torch.tensor([1.0, -1.0])) + identity_operator(2),
        block_diagonal_operator([torch.eye(2), torch.zeros(1, 1)]),
        kronecker_operator(torch.eye(2), torch.ones(2, 2)),
        kronecker_operator(torch.eye(2), torch.eye(2)) - identity_operator(4),
        dense_operator(torch.ones(2, 2)) @ identity_operator(2),
        low_rank_operator(torch.eye(2)[:, 1:], torch.ones(1)) + diagonal_operator(torch.zeros(2)),
    ],
    ids=str,
)
def test_a_singular_matrix_has_no_inverse(A):
    assert A._inverse() is None


@pytest.mark.parametrize(
    "A",
    [
        low_rank(0),
        dense_operator(matrix(0, 3, 4)),
        dense_operator(definite(0)) + dense_operator(definite(1)),
        function_operator(lambda v: 2 * v, N, symmetric=True, dtype=DOUBLE) + identity(),
        kronecker_operator(definite(0, 2), definite(0, 3)) + diagonal_operator(diagonal(0)),
        kronecker_operator(matrix(0, 2, 2), definite(0, 3)) + identity(),
        block_diagonal_operator([matrix(0, 2, 3), matrix(0, 4, 3)]) + identity(),
        CountingOperator(dense_operator(definite(0))),
    ],
    ids=str,
)
def test_without_a_structure_there_is_no_inverse(A):
    assert A._inverse() is None


def test_an_inverse_and_a_diagonal_take_no_products():
    A = CountingOperator(dense_operator(definite(0)))
    whole = block_diagonal_operator([A, definite(1)]) + identity_operator(2 * N)
    assert whole._inverse() is None
    assert whole._diagonal() is None
    assert A.products == 0


DIAGONALS = {
    "sum": lambda: diagonal_operator(diagonal(1)) + 0.5 * identity(),
    "scaled": lambda: 0.5 * diagonal_operator(diagonal(1)),
    "product": lambda: diagonal_operator(diagonal(1)) @ diagonal_operator(diagonal(2)),
    "blocks": lambda: block_diagonal_operator(
        [diagonal_operator(diagonal(1, 2)), identity_operator(4, DOUBLE)]
    ),
    "kronecker": lambda: kronecker_operator(
        diagonal_operator(diagonal(1, 2)), identity_operator(3, DOUBLE)
    ),
}


@pytest.mark.parametrize("kind", DIAGONALS)
def test_an_expression_of_diagonals_is_known_to_be_one(kind):
    D = DIAGONALS[kind]()
    assert D.is_diagonal
    for A in (dense_operator(definite(0)), low_rank(0) + identity(), D + identity()):
        inverse = (A + D)._inverse()
        exact = torch.linalg.inv(A.to_dense() + D.to_dense())
        torch.testing.assert_close(inverse.to_dense(), exact)
    assert not (D + low_rank(0)).is_diagonal


def test_a_shift_is_split_off_where_a_sum_shows_it():
    G = dense_operator(definite(0))
    for A in (G + 2.0 * identity(), 2.0 * identity() + G, G + identity() + identity()):
        assert A._split_shift() == (G, 2.0)
    uneven = G + diagonal_operator(diagonal(0))
    for A in (G, uneven, G + low_rank(0)):
        assert A._split_shift() == (A, 0.0)
    G, c = (uneven + 2.0 * identity())._split_shift()
    torch.testing.assert_close(G.to_dense(), uneven.to_dense())
    assert c == 2.0


def test_adjoints_of_expressions_take_blocks():
    A, B = (dense_operator(matrix(seed)) for seed in (0, 1))
    eyes = block_diagonal_operator([matrix(2, 2, 2), matrix(3, 4, 4)])
    whole = (2.0 * A @ B + eyes).T
    expected = (2.0 * matrix(0) @ matrix(1) + eyes.to_dense()).T
    torch.testing.assert_close(whole @ matrix(4, N, 3), expected @ matrix(4, N, 3))
    torch.testing.assert_close(whole.T @ matrix(4, N, 3), expected.T @ matrix(4, N, 3))


def test_a_block_of_an_operator_takes_blocks_and_keeps_the_diagonal():
    tree = {"a": diagonal(0, 2), "b": diagonal(1, 4)}
    whole = dense_operator(definite(0)) + diagonal_operator(tree)  # only one term knows the names
    block = whole.block("b")
    expected = whole.to_dense()[2:, 2:]
    torch.testing.assert_close(block @ matrix(0, 4, 3), expected @ matrix(0, 4, 3))
    torch.testing.assert_close(block._diagonal(), expected.diagonal())


def test_an_inverse_of_low_rank_may_be_shifted_and_inverted_again():
    A = low_rank(0) + identity()
    inverse = A._inverse()
    torch.testing.assert_close(inverse._inverse().to_dense(), A.to_dense())
    shifted = (inverse + 2.0 * identity())._inverse()
    torch.testing.assert_close(
        shifted.to_dense(), torch.linalg.inv(inverse.to_dense() + 2.0 * torch.eye(N, dtype=DOUBLE))
    )


def test_an_inverse_takes_trees_like_its_operator():
    tree = {"a": diagonal(0, 4), "b": diagonal(1, 2)}
    for A in (
        dense_operator(definite(0)),
        low_rank(0),
        kronecker_operator(definite(0, 2), definite(0, 3)),
    ):
        whole = A + 0.0 * diagonal_operator(tree) + identity_operator(N)
        x = whole._inverse() @ (whole @ tree)
        torch.testing.assert_close(x, tree)


# --------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    ("error", "make"),
    [
        (ShapeError, lambda: low_rank_operator(torch.ones(3), torch.ones(1))),
        (ShapeError, lambda: low_rank_operator(torch.ones(3, 2), torch.ones(3))),
        (DtypeError, lambda: low_rank_operator(torch.ones(3, 2).double(), torch.ones(2))),
        (DtypeError, lambda: low_rank_operator(torch.ones(3, 2).int(), torch.ones(2).int())),
        (StructureError, lambda: low_rank_operator([[1.0]], torch.ones(1))),
        (ArgumentError, lambda: block_diagonal_operator([])),
        (OperatorError, lambda: block_diagonal_operator([3.0])),
        (DtypeError, lambda: block_diagonal_operator([torch.eye(2), torch.eye(2).double()])),
        (DtypeError, lambda: kronecker_operator(torch.eye(2), torch.eye(2).double())),
        (ShapeError, lambda: kronecker_operator(torch.ones(2), torch.eye(2))),
    ],
)
def test_what_makes_no_operator_is_refused(error, make):
    with pytest.raises(error) as caught:
        make()
    assert isinstance(caught.value, HesseError)


def test_a_low_rank_of_zero_leaves_the_rest():
    A = low_rank_operator(torch.ones(3, 0), torch.ones(0)) + identity_operator(3)
    assert torch.equal(solve(A, torch.ones(3)).x, torch.ones(3))
