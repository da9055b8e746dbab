"""Constant sparse matrices within functions whose Hessians are sparse."""

import pickle

import pytest
import torch

from hesse import hessian_operator, minimize, solve, sparse_hessian_operator
from hesse.ad.composing import Composing
from hesse.ad.decompositions import DECOMPOSITIONS
from tests.sparse_functions import point

DOUBLE = torch.float64
# Differences of neighbours two apart, twice in the case of the first; some columns are empty.
ROWS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0])
COLUMNS = torch.tensor([0, 2, 1, 3, 2, 4, 3, 5, 0])
VALUES = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1, 1], dtype=DOUBLE)


def matrix(layout):
    D = torch.sparse_coo_tensor(torch.stack([ROWS, COLUMNS]), VALUES, (4, 7), check_invariants=True)
    if layout == "uncoalesced":
        return D
    if layout == "coo":
        return D.coalesce()
    dense = D.to_dense()
    return dense.to_sparse_csr() if layout == "csr" else dense.to_sparse_csc()


PRODUCTS = {
    "matmul": lambda D, x: D @ x,
    "mv": lambda D, x: D.mv(x.sin()),
    "torch.mv": lambda D, x: torch.mv(D, x),
    "mm": lambda D, x: torch.mm(D, torch.stack([x, x**2], 1)),
    "sparse.mm": lambda D, x: torch.sparse.mm(D, x[:, None]),
    "both sides": lambda D, x: D.t() @ (D @ x),
    "T": lambda D, x: D.T @ (D.matmul(x)) ** 2,
    "mT": lambda D, x: torch.matmul(D.mT, D @ x),
    "transpose": lambda D, x: D.transpose(0, 1) @ (D @ x),
    "from the right": lambda D, x: torch.stack([x[:4], x[3:]]) @ D,
}


MISSING = [("T", "csr"), ("T", "csc")]


@pytest.mark.some_cases(24)
@pytest.mark.parametrize("layout", ["coo", "uncoalesced", "csr", "csc"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_entries_are_those_of_the_dense_matrix(product, layout):
    if (product, layout) in MISSING:
        pytest.skip("torch has no such operation")
    D, multiply = matrix(layout), PRODUCTS[product]
    dense = D.to_dense()

    def f(x, D=D):
        return (multiply(D, x) ** 4).sum() + (x**2).sum()

    def oracle(x):
        return (multiply(dense, x) ** 4).sum() + (x**2).sum()

    S = sparse_hessian_operator(f, point(7))
    for seed in (0, 1, 2):
        expected = torch.autograd.functional.hessian(oracle, point(7, seed))
        torch.testing.assert_close(S.at(point(7, seed)).to_dense(), expected)
    there = torch.autograd.functional.hessian(oracle, point(7, 5)) != 0
    assert S.to_scipy().nnz == int(there.sum())
    torch.testing.assert_close(S.gradient, torch.autograd.functional.jacobian(oracle, point(7)))


D = matrix("coo")


def energy(x):
    return ((D @ x - 1) ** 4).sum() + (x**2).sum()


def test_a_matrix_that_is_changed_changes_the_entries():
    D = matrix("coo")
    S = sparse_hessian_operator(lambda x: ((D @ x) ** 4).sum(), point(7))
    before = S.at(point(7, 1)).to_dense()
    D.mul_(2)
    torch.testing.assert_close(S.at(point(7, 1)).to_dense(), 16 * before)


def test_it_is_pickled_factorised_and_minimised():
    S = pickle.loads(pickle.dumps(sparse_hessian_operator(energy, point(7))))
    dense = hessian_operator(energy, point(7)).to_dense()
    torch.testing.assert_close(S.at(point(7)).to_dense(), dense)
    torch.testing.assert_close(solve(S, point(7, 1)).x, torch.linalg.solve(dense, point(7, 1)))
    result = minimize(energy, point(7), "newton-direct")
    assert result.success
    assert result.jac.abs().max() < 1e-5


def test_other_operators_leave_products_to_torch():
    """Gathers would take memory for every entry of the matrix."""
    H = hessian_operator(energy, point(7))
    assert "layout torch.sparse_coo" in str(_after(H, 6).plan)


def _after(H, products):
    H.announce(1000)
    for _ in range(products):
        H @ point(7)
    return H


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_determinants_are_those_of_torch(n):
    """Larger ones are left to torch."""
    A = torch.randn(5, n, n, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    given = Composing(lambda A: (DECOMPOSITIONS[torch.linalg.slogdet](A), _det(A)))(A)
    torch.testing.assert_close(given[0].sign, torch.linalg.slogdet(A).sign)
    torch.testing.assert_close(given[0].logabsdet, torch.linalg.slogdet(A).logabsdet)
    torch.testing.assert_close(given[1], torch.linalg.det(A))


def _det(A):
    return DECOMPOSITIONS[torch.linalg.det](A)


@pytest.mark.parametrize("dim", [0, -1])
def test_cross_products_are_those_of_torch(dim):
    a, b = torch.randn(2, 3, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    cross = DECOMPOSITIONS[torch.linalg.cross]
    expected = torch.linalg.cross(a, b, dim=dim)
    torch.testing.assert_close(Composing(lambda a: cross(a, b, dim=dim))(a), expected)
    torch.testing.assert_close(
        Composing(lambda a: cross(a, b[:1]))(a), torch.linalg.cross(a, b[:1])
    )
