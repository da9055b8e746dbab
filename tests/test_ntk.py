# SPDX-License-Identifier: Apache-2.0
"""Tangent kernels J S J' against dense Jacobians."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hesse import (
    Risk,
    diagonal_operator,
    eigsh,
    ggn_operator,
    identity_operator,
    inverse_operator,
    ntk_operator,
    solve,
)
from hesse.errors import ArgumentError, HesseError, ShapeError
from hesse.testing import check_operator

DOUBLE = torch.float64


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def inputs(n, seed=1):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def jacobian(model, x):
    params = dict(model.named_parameters())
    tree = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(params)
    return torch.cat([part.detach().reshape(3 * len(x), -1) for part in tree.values()], 1)


@pytest.mark.parametrize("mode", ["auto", "traced-split", "retained-graph"])
def test_of_a_model_and_of_a_risk(mode):
    model, x = network(), inputs(7)
    J = jacobian(model, x)
    batches = [(part, torch.zeros(len(part), 3).double()) for part in x.split(4)]
    risk = Risk(model, nn.MSELoss(), batches, weight_decay=0.1)
    for K in (
        ntk_operator(model, inputs=x, mode=mode),
        ntk_operator(risk, risk.params, mode=mode),
        ntk_operator(risk, risk.params, x, mode=mode),
        ntk_operator(
            lambda p, x: torch.func.functional_call(model, p, (x,)), risk.params, x, mode=mode
        ),
    ):
        assert K.symmetric
        for _ in range(3):
            torch.testing.assert_close(K.to_dense(), J @ J.T)
        check_operator(K)
    u = torch.randn(7, 3, dtype=DOUBLE)
    torch.testing.assert_close((K @ u).reshape(-1), J @ (J.T @ u.reshape(-1)))


def test_with_a_matrix_between():
    model, x = network(), inputs(7)
    J = jacobian(model, x)
    d = torch.linspace(1, 2, J.shape[1], dtype=DOUBLE)
    K = ntk_operator(model, inputs=x, S=diagonal_operator(d))
    torch.testing.assert_close(K.to_dense(), J * d @ J.T)
    check_operator(K)
    risk = Risk(model, nn.MSELoss(), (x, torch.zeros(7, 3).double()))
    G = ggn_operator(risk, risk.params)
    damped = G + 0.1 * identity_operator(43)
    covariance = ntk_operator(risk, S=inverse_operator(damped, rtol=1e-12))
    exact = J @ torch.linalg.solve(2 / 21 * J.T @ J + 0.1 * torch.eye(len(d)).double(), J.T)
    torch.testing.assert_close(covariance.to_dense(), exact)


def test_eigenvalues_and_systems():
    model, x = network(), inputs(40)
    exact = torch.linalg.eigvalsh(jacobian(model, x) @ jacobian(model, x).T)
    K = ntk_operator(model, inputs=x)
    torch.testing.assert_close(eigsh(K, 2).values.sort()[0], exact[-2:])
    u = torch.randn(40, 3, dtype=DOUBLE)
    solution = solve(K, u, damping=1.0, rtol=1e-10)
    torch.testing.assert_close((K @ solution.x) + solution.x, u)


def test_many_rows_without_the_matrix():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.randn(100_000, 4)
    K = ntk_operator(model, inputs=x)
    assert K.shape == (100_000, 100_000)
    assert K.curvature(torch.ones(100_000)) > 0


def test_cost():
    model = nn.Sequential(nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 30))
    x = torch.randn(64, 30)
    K = ntk_operator(model, inputs=x, mode="traced-split")
    u = torch.randn(64 * 30)
    K @ u
    with FlopCounterMode(display=False) as gradient:
        model(x).sum().backward()
    with FlopCounterMode(display=False) as product:
        K @ u
    # J and J' each take 2/3 of a gradient of which no derivative in the inputs is taken.
    assert product.get_total_flops() <= 1.5 * gradient.get_total_flops()


def test_refused():
    model = network()
    with pytest.raises(ArgumentError, match="inputs= for the model"):
        ntk_operator(model)
    with pytest.raises(ArgumentError, match="params"):
        ntk_operator(lambda p, x: x @ p, inputs=inputs(3))
    with pytest.raises(ShapeError, match="symmetric operator on 43 parameters"):
        ntk_operator(model, inputs=inputs(3), S=identity_operator(5))
    with pytest.raises(HesseError, match="eval"):
        ntk_operator(nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(), inputs=torch.ones(3, 4))
