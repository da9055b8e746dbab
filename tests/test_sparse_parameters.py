# SPDX-License-Identifier: Apache-2.0
"""Sparse matrices made from the parameters, whose second derivatives torch gets wrong."""

import warnings

import pytest
import torch
from torch import nn

from hesse.ad.one_shot import ONE_SHOT_MODES as ONE_SHOT
from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import DerivativeError, FallbackWarning
from hesse.risk.risk import Risk
from hesse.testing import dense_hessian
from hesse.vectors.inner_products import norm

DOUBLE = torch.float64
X = torch.tensor([0.5, 2.0, -1.0], dtype=DOUBLE)
ROWS, COLUMNS = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
V = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)


def coo(x):
    indices = torch.stack([ROWS, COLUMNS])
    return torch.sparse_coo_tensor(indices, x, (2, 2), check_invariants=True)


def csr(x):
    return torch.sparse_csr_tensor(
        torch.tensor([0, 2, 3]), COLUMNS, x, (2, 2), check_invariants=True
    )


def csc(x):
    return torch.sparse_csc_tensor(
        torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1]), x, (2, 2), check_invariants=True
    )


def dense(x):
    return torch.zeros(2, 2, dtype=x.dtype).index_put((ROWS, COLUMNS), x)


USES = {
    "entries": lambda matrix, x: (matrix(x).to_dense() ** 3).sum(),
    "product": lambda matrix, x: (matrix(x) @ x[:2, None]).pow(3).sum(),
    "of a vector": lambda matrix, x: (matrix(x * x) @ torch.ones(2, 1, dtype=x.dtype)).pow(2).sum(),
}
NAMES = {coo: "sparse_coo_tensor", csr: "SparseCsr|sparse_compressed", csc: "SparseCsc|sparse_comp"}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("matrix", NAMES)
def test_a_product_is_right_and_says_how_it_was_taken(matrix, use):
    expected = dense_hessian(lambda x: USES[use](dense, x), X) @ V
    for take in (hvp, lambda f, x, v: hessian_operator(f, x) @ v):
        with pytest.warns(FallbackWarning, match=f"'finite-difference' because.*({NAMES[matrix]})"):
            product = take(lambda x: USES[use](matrix, x), X, V)
        assert norm(product - expected) <= 1e-8 * norm(expected)


@pytest.mark.parametrize("mode", [*ONE_SHOT, "retained-graph", "traced-split"])
@pytest.mark.parametrize("matrix", NAMES)
def test_no_named_mode_gives_another_product(matrix, mode):
    def f(x):
        return USES["product"](matrix, x)

    expected = dense_hessian(lambda x: USES["product"](dense, x), X) @ V
    if "difference" in mode:
        product = hvp(f, X, V, mode)
        assert norm(product - expected) <= 1e-6 * norm(expected)
        return
    with pytest.raises(DerivativeError, match=f"derivatives exist in mode '{mode}'|layout"):
        hessian_operator(f, X, mode=mode) @ V


@pytest.mark.parametrize("matrix", ["coo", "csr"])
def test_a_sparse_matrix_of_data_needs_no_difference(matrix):
    a = dense(X).to_sparse() if matrix == "coo" else dense(X).to_sparse_csr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = hvp(lambda x: (a @ x[:2, None]).pow(3).sum(), X, V)
    expected = dense_hessian(lambda x: (dense(X) @ x[:2]).pow(3).sum(), X) @ V
    assert norm(product - expected) <= 1e-14 * norm(expected)


class Edges(nn.Module):
    """A layer of a graph network with learned weights of its edges."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix, self.weights = matrix, nn.Parameter(X.clone())
        self.layer = nn.Linear(2, 2, dtype=DOUBLE)

    def forward(self, x):
        return torch.tanh(self.matrix(self.weights) @ self.layer(x))


def edge_risk(matrix):
    data = torch.randn(2, 2, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    return Risk(Edges(matrix), nn.MSELoss(), (data[0], data[1]))


@pytest.mark.parametrize("mode", ["auto", "retained-graph"])
def test_a_gauss_newton_product_is_refused_with_a_way_out(mode):
    risk = edge_risk(coo)
    with pytest.raises(DerivativeError, match=r"sparse_coo_tensor") as caught:
        ggn_operator(risk, risk.params, mode=mode) @ torch.ones(9, dtype=DOUBLE)
    assert "index_put" in caught.value.remedy
    # which is the way that `dense` goes
    risk = edge_risk(dense)
    assert (ggn_operator(risk, risk.params, mode=mode) @ torch.ones(9, dtype=DOUBLE)).all()


def test_the_hessian_of_a_risk_with_learned_edges():
    expected = hessian_operator(edge_risk(dense), edge_risk(dense).params).to_dense()
    with pytest.warns(FallbackWarning, match="sparse_coo_tensor"):
        ours = hessian_operator(edge_risk(coo), edge_risk(coo).params).to_dense()
    assert norm((ours - expected).flatten()) <= 1e-8 * norm(expected.flatten())
