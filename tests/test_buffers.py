# SPDX-License-Identifier: Apache-2.0
"""Buffers that a forward pass writes to are left unchanged, and do not affect products."""

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.risk.buffers import restoring_buffers
from hesse.risk.risk import Risk
from hesse.testing import dense_hessian
from hesse.vectors.inner_products import norm

X, Y = torch.randn(12, 4).double(), torch.randn(12, 3).double()


def instance_norm():
    norm_ = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 2)), norm_, nn.Flatten(), nn.Linear(4, 3)).double()


def spectral_norm():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5))
    return nn.Sequential(linear, nn.Tanh(), nn.Linear(5, 3)).double()


class Replacing(nn.Module):
    """A buffer that every call replaces by another tensor."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3).double()
        self.register_buffer("shift", torch.ones(3).double())

    def forward(self, x):
        outputs = torch.tanh(self.net(x) + self.shift)
        self.shift = self.shift + 1.0
        return outputs


MODELS = pytest.mark.parametrize("model", [instance_norm, spectral_norm, Replacing])


def contents(net):
    return {name: (buffer, buffer.clone()) for name, buffer in net.named_buffers()}


def assert_untouched(net, before):
    after = dict(net.named_buffers())
    assert after.keys() == before.keys()
    for name, (buffer, content) in before.items():
        assert after[name] is buffer
        assert torch.equal(buffer, content)


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(7)
@MODELS
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
def test_products_leave_the_buffers_unchanged_and_do_not_depend_on_them(model, mode, batches):
    net = model()
    before = contents(net)
    data = list(zip(X.split(12 // batches), Y.split(12 // batches), strict=True))
    risk = Risk(net, nn.MSELoss(), data)

    def definition(params):
        buffers = {name: content.clone() for name, (_, content) in before.items()}
        return nn.functional.mse_loss(torch.func.functional_call(net, params | buffers, (X,)), Y)

    exact = dense_hessian(definition, risk.params)
    H, G = (op(risk, risk.params, mode=mode) for op in (hessian_operator, ggn_operator))
    H.announce(1000)
    v = torch.linspace(-1, 1, len(exact)).double()
    for _ in range(3):
        assert norm(H @ v - exact @ v) <= 1e-12 * norm(exact @ v)
        assert norm(H.at(risk.params) @ v - exact @ v) <= 1e-12 * norm(exact @ v)
    assert norm(G @ v - G @ v) == 0.0
    assert norm(hvp(risk, risk.params, v) - exact @ v) <= 1e-12 * norm(exact @ v)
    assert float(risk(risk.params)) == pytest.approx(float(definition(risk.params)), rel=1e-12)
    assert_untouched(net, before)


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_written_buffers_are_detected_again_after_a_change_to_train_mode(make):
    net = spectral_norm().eval()
    before = contents(net)
    risk = Risk(net, nn.MSELoss(), (X, Y))
    net.train()
    A = make(risk, risk.params)
    v = torch.ones(A.shape[0]).double()
    assert norm(A @ v - A.at(risk.params) @ v) == 0.0
    assert_untouched(net, before)


@MODELS
def test_buffers_are_restored_even_if_the_model_fails(model):
    net = model()
    before = contents(net)

    def fail():
        with restoring_buffers(net):
            net(X)
            raise ValueError("after the forward pass")

    with pytest.raises(ValueError, match="after the forward pass"):
        fail()
    assert_untouched(net, before)
