# SPDX-License-Identifier: Apache-2.0
"""The preconditioner against the matrices it approximates, built densely."""

import pytest
import torch
from torch import nn

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.loss import LossHessian
from hesse.curvature import ggn_operator
from hesse.krylov import solve
from hesse.operators import identity_operator
from hesse.optimize.kronecker_preconditioner import (
    KroneckerPreconditioner,
    _root_of_loss_hessian,
)
from hesse.risk.risk import Risk

DOUBLE = torch.float64


def refreshed(model, loss, x, y, **options):
    risk = Risk(model.double(), loss, (x, y), **options)
    G = ggn_operator(risk, risk.params)
    kronecker = KroneckerPreconditioner(risk, G.domain)
    kronecker.refresh(risk, risk.params, seed=0, past=0.0)
    return kronecker, G


def test_it_is_the_inverse_of_the_matrix_of_its_factors():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(30, 3, dtype=DOUBLE), torch.randn(30, 2, dtype=DOUBLE)
    kronecker, G = refreshed(model, nn.MSELoss(), x, y, weight_decay=0.02)
    inverse = kronecker(0.1).to_dense()
    dense = torch.zeros_like(inverse)
    for layer in kronecker.layers:
        factors, (U_A, U_S) = kronecker.factors[layer.name], kronecker.bases[layer.name]
        basis = torch.kron(U_S, U_A)  # of vec [W b], row by row
        block = basis @ torch.diag(factors.d.flatten() + 0.12) @ basis.T
        rows, columns = U_S.shape[0], U_A.shape[0]
        index = torch.arange(G.shape[0])
        order = torch.cat(
            [
                torch.cat([index[layer.weight].view(rows, columns - 1)[i], index[layer.bias][[i]]])
                for i in range(rows)
            ]
        )
        dense[order[:, None], order] = block
    torch.testing.assert_close(inverse @ dense, torch.eye(G.shape[0], dtype=DOUBLE))
    torch.testing.assert_close(inverse, inverse.T)
    assert torch.linalg.eigvalsh(inverse)[0] > 0


def test_one_output_with_squared_error_is_exact():
    # One linear layer, one output: g is the same size for every case up to sign, so that the block
    # E[g g' (x) a a'] is its Kronecker product in expectation over the signs of z.
    torch.manual_seed(0)
    x = torch.randn(4000, 3, dtype=DOUBLE)
    model = nn.Linear(3, 1)
    risk = Risk(model.double(), nn.MSELoss(), (x, x[:, :1]))
    G = ggn_operator(risk, risk.params)
    kronecker = KroneckerPreconditioner(risk, G.domain)
    runs = 20
    inverse = torch.zeros(4, 4, dtype=DOUBLE)
    for seed in range(runs):
        kronecker.refresh(risk, risk.params, seed=seed, past=0.0)
        inverse += torch.linalg.inv(kronecker(0.0).to_dense()) / runs
    # d is chi-squared with 4000 terms a run: 2.2% a run, 0.5% over 20, three times that allowed
    relative = (inverse - G.to_dense()).norm() / G.to_dense().norm()
    assert relative < 0.015


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (nn.MSELoss(), torch.zeros(4, 3, dtype=DOUBLE)),
        (nn.CrossEntropyLoss(), torch.tensor([0, 1, 2, 1])),
        (nn.BCEWithLogitsLoss(), torch.ones(4, 3, dtype=DOUBLE)),
    ],
)
def test_the_root_has_the_covariance_of_the_loss_hessian(loss, targets):
    z = torch.randn(4, 3, dtype=DOUBLE)
    H = torch.autograd.functional.hessian(lambda outputs: loss(outputs, targets), z)
    H = H.reshape(12, 12)
    # The summed losses of many copies of z have H for each of them: so many samples a run.
    copies, runs, generator = 200, 50, torch.Generator().manual_seed(0)
    many, all_targets = torch.cat([z] * copies).requires_grad_(), torch.cat([targets] * copies)
    with twice_differentiable():
        summed = LossHessian(many, lambda outputs: copies * loss(outputs, all_targets))
    roots = [_root_of_loss_hessian(summed, generator)[0] for _ in range(runs)]
    U = torch.cat(roots).view(copies * runs, 12)
    # Monte Carlo: sqrt((n + 1) / samples) = 3.6% for H = I; the rest for the root of ten steps
    assert (U.T @ U / len(U) - H).norm() <= 0.05 * H.norm()


def test_it_shortens_conjugate_gradients():
    torch.manual_seed(0)
    x = torch.randn(300, 10, dtype=DOUBLE) * torch.logspace(0, 2, 10, dtype=DOUBLE)
    model = nn.Sequential(nn.Linear(10, 10), nn.Tanh(), nn.Linear(10, 10))
    kronecker, G = refreshed(model, nn.MSELoss(), x, x)
    A, b = G + 1e-3 * identity_operator(G.shape[0]), torch.randn(G.shape[0], dtype=DOUBLE)
    plain = solve(A, b, "cg", rtol=1e-6, max_iterations=5000)
    better = solve(A, b, "cg", rtol=1e-6, max_iterations=5000, preconditioner=kronecker(1e-3))
    assert better.converged
    assert better.iterations < 0.67 * plain.iterations
