# SPDX-License-Identifier: Apache-2.0
"""Checkpointing and custom functions: products of a plain twin, or refused helpfully."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.errors import DerivativeError, FunctionError, HesseError
from tests.feature_networks import (
    MODES,
    V,
    X,
    assert_close,
    assert_like,
    direction,
    near,
    net,
    net_with,
    operator,
    risk_of,
)

X_TWO = torch.linspace(-1, 2, 20, dtype=torch.float64).sin().view(5, 4)
TWO = torch.tensor([0, 1, 2, 0, 1])

# --------------------------------------------------------------------------------------------------
# Checkpointing


class Checkpointed(nn.Module):
    """A network whose last part is computed again in the backward pass."""

    def __init__(self, **options):
        super().__init__()
        self.net, self.options = net(), options

    def forward(self, x):
        return checkpoint(self.net[1:], self.net[0](x), **self.options)


def test_a_checkpointed_function():
    def f(x):
        return checkpoint(lambda z: (z**3).sum(), x, use_reentrant=False)

    for mode in MODES:
        assert_close(operator(f, X, mode) @ V, 6 * X * V)


def test_a_checkpointed_model_at_its_own_parameters():
    ours, plain = risk_of(Checkpointed(use_reentrant=False)), risk_of(net())
    v = direction(plain)
    for mode in MODES:
        product = operator(ours, ours.params, mode) @ v
        assert_close(product, operator(plain, plain.params, mode) @ v)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpointed_model_at_another_point(mode):
    ours, plain = risk_of(Checkpointed(use_reentrant=False)), risk_of(net())
    v = direction(plain)
    product = operator(ours, near(ours.params), mode) @ v
    assert_close(product, operator(plain, near(plain.params), mode) @ v)


@pytest.mark.parametrize("mode", [*MODES, "reverse-over-reverse"])
def test_a_checkpointed_model_whose_parameters_are_taken_out_too_early(mode):
    model = Checkpointed(use_reentrant=False).double()
    inputs, targets = risk_of(net()).data.first.inputs, risk_of(net()).data.first.targets
    x = {name: leaf.detach() for name, leaf in model.named_parameters()}

    def f(params):
        return F.cross_entropy(torch.func.functional_call(model, params, (inputs,)), targets)

    v = direction(risk_of(net()))
    assert torch.isfinite(operator(f, x, mode) @ v).all()  # the model's own are the right ones
    with pytest.raises(HesseError, match=r"Give hesse\.Risk"):
        operator(f, near(x), mode) @ v


def test_outputs_whose_parameters_are_taken_out_too_early():
    """Away from the model's own parameters J'u would be that of other activations."""
    model, (inputs, targets) = Checkpointed(use_reentrant=False).double(), (X_TWO, TWO)
    x = {name: leaf.detach() for name, leaf in model.named_parameters()}

    def outputs(params, inputs):
        return torch.func.functional_call(model, params, (inputs,))

    def closure():
        return F.cross_entropy(model(inputs), targets)

    J = hesse.jacobian_operator(lambda params: outputs(params, inputs), x)
    assert torch.isfinite(J @ torch.ones(J.shape[1], dtype=J.dtype)).all()
    for compute in (
        lambda: hesse.Risk(outputs, F.cross_entropy, (inputs, targets), params=x),
        lambda: hesse.HessianFree(model.parameters()).step(closure),
        lambda: J.at(near(x)) @ torch.ones(J.shape[1], dtype=J.dtype),
        lambda: hesse.ntk_operator(model, near(x), inputs).to_dense(),
        lambda: hesse.least_squares(lambda params: outputs(params, inputs), near(x)),
    ):
        with pytest.raises(DerivativeError, match=r"Give hesse\.Risk"):
            compute()


def test_a_checkpoint_of_what_it_is_given_is_as_any_other_function():
    def part(x, w):
        return torch.tanh(x @ w) @ w.T

    def outputs(params, inputs):
        return checkpoint(part, inputs, params["w"], use_reentrant=False)

    params = {"w": torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)}
    ours, plain = (
        hesse.Risk(g, F.cross_entropy, (X_TWO, TWO), params=params)
        for g in (outputs, lambda params, x: part(x, params["w"]))
    )
    at = {"w": params["w"].flip(0) ** 2}
    for make in (hesse.ggn_operator, hesse.jacobian_operator):
        assert_close(make(ours, at).to_dense(), make(plain, at).to_dense())
    J = hesse.jacobian_operator(lambda params: outputs(params, X_TWO), at)
    assert_close(J.to_dense(), hesse.jacobian_operator(plain, at).to_dense())


class Attention(nn.Module):
    """Fused attention within a checkpoint, which runs it again by the kernel of the first time."""

    def __init__(self):
        super().__init__()
        self.w, self.last, self.again = nn.Parameter(torch.randn(12, 4)), nn.Linear(4, 3), True

    def attend(self, x):
        weight = self.w / self.w.norm()  # which no rule covers
        q, k, v = F.linear(x, weight).unflatten(-1, (2, 6)).transpose(1, 2).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x):
        mixed = checkpoint(self.attend, x, use_reentrant=False) if self.again else self.attend(x)
        return self.last(mixed).mean(1)


def test_what_needs_gradients_of_examples_runs_attention_again_by_the_same_kernels():
    torch.manual_seed(0)
    model = Attention().double()
    data = torch.randn(5, 3, 4, dtype=torch.float64), TWO
    risk = hesse.Risk(model, F.cross_entropy, data)
    near_it = near(risk.params)
    found = hesse.diagonal(hesse.ggn_operator(risk, near_it)).value
    gradients = list(risk.per_example.gradients(near_it))
    model.again = False
    G = hesse.ggn_operator(hesse.Risk(model, F.cross_entropy, data), near_it)
    assert_close(found, G.to_dense().diagonal())
    assert_close(torch.cat(gradients).mean(0), G.flat_gradient)


def test_a_reentrant_checkpoint_is_refused_with_its_remedy():
    """torch.autograd.grad gives what only its part reads no gradient, and raises nothing."""
    with pytest.raises(FunctionError, match="use_reentrant=False"):
        risk_of(Checkpointed(use_reentrant=True))

    def f(x):
        return checkpoint(lambda z: (z * x["a"]).sum(), x["b"] ** 2, use_reentrant=True)

    x = {"a": X, "b": X}
    for mode in ("auto", "finite-difference"):
        with pytest.raises((FunctionError, RuntimeError), match="use_reentrant=False"):
            operator(f, x, mode) @ x


def test_a_checkpointed_layer_norm_saves_the_same_tensors_again():
    """Composed of other operations where f is called, it is torch's where it is called again."""

    def f(x):
        def part(z):
            return F.layer_norm(z, z.shape, x["weight"], x["bias"]).pow(3).sum()

        z = x["z"] ** 2
        return checkpoint(part, z, use_reentrant=False) if is_checkpointed else part(z)

    x = {"z": X, "weight": X + 1, "bias": X**2}
    is_checkpointed = False
    expected = operator(f, x).to_dense()
    is_checkpointed = True
    for mode in MODES:
        assert_close(operator(f, x, mode).to_dense(), expected)


# --------------------------------------------------------------------------------------------------
# Custom functions


class Tanh(torch.autograd.Function):
    """tanh with a backward pass made of torch operations, and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y**2)


class OnceTanh(Tanh):
    """tanh with a backward pass that says that it cannot be differentiated."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y**2)


class ForeignTanh(Tanh):
    """tanh with a backward pass that leaves torch, and does not say so."""

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return torch.from_numpy(grad.detach().numpy() * (1 - y.detach().numpy() ** 2))


def test_a_custom_function_without_forward_mode():
    assert_like(net_with(Tanh.apply), net(), modes=["auto", "retained-graph"])


def test_a_custom_function_is_not_recorded_and_named():
    risk = risk_of(net_with(Tanh.apply))
    with pytest.raises(DerivativeError, match="the custom function Tanh is foreign to it"):
        operator(risk, risk.params, "traced-split") @ direction(risk)


@pytest.mark.parametrize("function", [OnceTanh, ForeignTanh])
def test_a_backward_pass_that_cannot_be_differentiated_is_named(function):
    risk = risk_of(net_with(function.apply))
    for mode in ("retained-graph", "reverse-over-reverse"):
        with pytest.raises(HesseError, match=f"backward pass of {function.__name__}") as caught:
            operator(risk, risk.params, mode) @ direction(risk)
        assert "'finite-difference'" in caught.value.remedy
    with pytest.raises(DerivativeError, match=f"backward pass of {function.__name__}"):
        hesse.ggn_operator(risk, risk.params) @ direction(risk)
