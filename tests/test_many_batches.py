# SPDX-License-Identifier: Apache-2.0
"""A data set of several batches is entered once for all products at a point, if memory allows."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from hesse import Risk, ggn_operator, hessian_operator
from hesse.curvature import point_product
from hesse.memory.available import available_bytes

MODES = ["auto", "traced-split", "retained-graph"]


def setting(count=8, rows=32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
    data = [(torch.randn(rows, 30), torch.randn(rows, 40)) for _ in range(count)]
    return model, data, Risk(model, nn.MSELoss(), data, weight_decay=1e-3)


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def gradient_flops(model, data):
    def all_gradients():
        for inputs, targets in data:
            loss = nn.functional.mse_loss(model(inputs), targets)
            torch.autograd.grad(loss, list(model.parameters()))

    return flops(all_gradients)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("make", "limit"), [(hessian_operator, 2.1), (ggn_operator, 1.4)])
def test_products_take_two_gradients(make, limit, mode):
    model, data, risk = setting()
    A = make(risk, risk.params, mode=mode)
    v = A.domain.gaussian()
    A.announce(1000)  # auto mode traces at once: a trace has a cost of its own
    A @ v, A @ v
    gradient = gradient_flops(model, data)
    assert all(flops(lambda: A @ v) <= limit * gradient for _ in range(3))
    assert "8 of 8 batches between products" in str(A.plan)


def test_a_loader_that_does_not_shuffle_is_entered_once_too():
    model, data, _ = setting()
    X, Y = (torch.cat(part) for part in zip(*data, strict=True))
    risk = Risk(model, nn.MSELoss(), DataLoader(TensorDataset(X, Y), 32))
    H = hessian_operator(risk, risk.params, mode="traced-split")
    v = H.domain.gaussian()
    H @ v, H @ v
    assert flops(lambda: H @ v) <= 2.1 * gradient_flops(model, data)
    expected = hessian_operator(risk.on((2.0 * X, Y)), risk.params) @ v
    X.mul_(2.0)
    with pytest.raises(Exception, match="the same data at every sweep"):
        H @ v
    again = Risk(model, nn.MSELoss(), DataLoader(TensorDataset(X, Y), 32))
    torch.testing.assert_close(hessian_operator(again, risk.params) @ v, expected)


def test_with_none_no_residuals_are_held():
    _, _, risk = setting()
    H = hessian_operator(risk, risk.params, mode="traced-split", memory_budget="none")
    v = H.domain.gaussian()
    for _ in range(3):
        product = H @ v
    assert "none of 8 batches between products" in str(H.plan)
    torch.testing.assert_close(product, hessian_operator(risk, risk.params) @ v)


def test_only_half_of_the_free_memory_is_taken(monkeypatch):
    _, _, risk = setting()
    H = hessian_operator(risk, risk.params, mode="traced-split")
    v = H.domain.gaussian()
    H @ v
    enough_for_three = 2 * 3.5 * H.plan.residual_bytes
    monkeypatch.setattr(point_product, "available_bytes", lambda _: enough_for_three)
    few = hessian_operator(risk, risk.params, mode="traced-split")
    for _ in range(3):
        product = few @ v
    assert "3 of 8 batches between products" in str(few.plan)
    torch.testing.assert_close(product, H @ v)


def test_a_batch_that_is_overwritten_counts(monkeypatch):
    model, data, risk = setting(3)
    H = hessian_operator(risk, risk.params)
    v = H.domain.gaussian()
    for scale in (1.0, 2.0, 3.0):
        data[1][0].mul_(scale)
        fresh = Risk(model, nn.MSELoss(), [(x.clone(), y) for x, y in data], weight_decay=1e-3)
        for _ in range(3):
            torch.testing.assert_close(H @ v, hessian_operator(fresh, risk.params) @ v)


def test_available_memory_is_less_than_the_machine_has():
    free = available_bytes(torch.device("cpu"))
    assert 0 <= free < 1e14
