# SPDX-License-Identifier: Apache-2.0
"""Parameters that f reaches by another way than its argument are replaced, or named in an error."""

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import FunctionError, HesseError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

X, Y = torch.randn(9, 4).double(), torch.randn(9, 3).double()
MSE = nn.MSELoss()


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def with_penalty(model):
    return lambda z, y: MSE(z, y) + 0.3 * sum((p**4).sum() for p in model.parameters())


def with_norm_of_a_layer(model):
    return lambda z, y: MSE(z, y) + torch.linalg.norm(model[0].weight) ** 3


def with_second_call(model):
    return lambda z, y: MSE(z, y) + (model(X + 0.5) - z).square().mean()


def with_vector_of_all(model):
    return lambda z, y: MSE(z, y) + nn.utils.parameters_to_vector(model.parameters()).square().sum()


class ListTied(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 3).double()
        self.shared = {"decoder": [self.encoder.weight]}

    def forward(self, x):
        return torch.tanh(self.encoder(x)) @ self.shared["decoder"][0] @ x.new_ones(4, 3)


class Closure(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        weight = self.layer.weight
        self.call = lambda x: torch.sin(x @ weight.T)

    def forward(self, x):
        return self.call(x) + self.layer(x) ** 2


LOSSES = [with_penalty, with_norm_of_a_layer, with_second_call, with_vector_of_all]
CASES = {
    **{loss.__name__: lambda loss=loss: ((m := net()), loss(m)) for loss in LOSSES},
    "list": lambda: (ListTied(), MSE),
    "closure": lambda: (Closure(), MSE),
}


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_hessian_at_any_point_is_that_of_the_module_with_these_parameters(case, mode):
    model, loss = case()
    risk = Risk(model, loss, (X, Y))
    point = {name: p + 0.1 * torch.randn_like(p) for name, p in risk.params.items()}
    H = hessian_operator(risk, risk.params, mode=mode).at(point)
    products = [H @ torch.eye(H.shape[0]).double()[:, k] for k in (0, 3)]
    value, gradient = H.value, H.flat_gradient
    for parameter, given in zip(model.parameters(), point.values(), strict=True):
        parameter.data = given.clone()
    direct = loss(model(X), Y)
    parameters = list(model.parameters())
    slope = torch.autograd.grad(direct, parameters, create_graph=True)
    slope = torch.cat([g.flatten() for g in slope])
    assert float(value) == pytest.approx(float(direct.detach()), rel=1e-12)
    assert norm(gradient - slope.detach()) <= 1e-12 * norm(slope.detach())
    for k, product in zip((0, 3), products, strict=True):
        column = torch.cat(
            [g.flatten() for g in torch.autograd.grad(slope[k], parameters, retain_graph=True)]
        )
        assert norm(product - column) <= 1e-10 * norm(column)


def test_a_penalty_counts_once_however_the_data_are_batched():
    model = net()
    loss = with_penalty(model)
    whole, batched = Risk(model, loss, (X, Y)), Risk(model, loss, [(X[:4], Y[:4]), (X[4:], Y[4:])])
    assert float(whole(whole.params)) == pytest.approx(float(batched(whole.params)), rel=1e-12)


def test_a_gauss_newton_matrix_of_a_loss_with_a_penalty_names_weight_decay():
    model = net()
    risk = Risk(model, with_penalty(model), (X, Y))
    with pytest.raises(FunctionError, match=r"(?s)'0.bias'.*weight_decay="):
        ggn_operator(risk, risk.params) @ torch.ones(43).double()


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        self.hidden = torch.tanh(self.first(x))
        return self.second(self.hidden)


def test_a_loss_of_an_attribute_that_forward_sets_has_no_gauss_newton_matrix():
    model = Remembering()
    risk = Risk(model, lambda z, y: MSE(z, y) + model.hidden.square().mean(), (X, Y))
    slope = torch.autograd.grad(risk.loss(model(X), Y), list(model.parameters()))
    slope = torch.cat([g.flatten() for g in slope])
    gradient = hessian_operator(risk, risk.params).flat_gradient
    assert norm(gradient - slope) <= 1e-12 * norm(slope)
    with pytest.raises(FunctionError, match="an attribute that forward sets"):
        ggn_operator(risk, risk.params) @ torch.ones(43).double()


# --------------------------------------------------------------------------------------------------
# What cannot be replaced


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, u):
        return 2 * u


def test_a_parameter_that_torch_does_not_show_is_named():
    model = net()

    def loss(z, y):
        return MSE(z, y) + Doubled.apply(model[0].weight).square().sum()

    with pytest.raises(FunctionError, match=r"own parameter '0.weight'"):
        Risk(model, loss, (X, Y))


class WithLooseWeight(nn.Module):
    def __init__(self, trainable):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.loose = [torch.randn(3, 3).double().requires_grad_(trainable)]

    def forward(self, x):
        return self.layer(x) @ self.loose[0]


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.centre = nn.Parameter(torch.randn(3).double())

    def forward(self, z, y):
        return (z - self.centre).square().mean()


def test_trainable_tensors_outside_the_module_are_named():
    with pytest.raises(FunctionError, match=r"(?s)attribute 'loose'.*nn.Parameter"):
        Risk(WithLooseWeight(trainable=True), MSE, (X, Y))
    with pytest.raises(FunctionError, match=r"the parameter 'centre' of the loss"):
        Risk(net(), Prototypes(), (X, Y))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(FunctionError, match="the variable 'scale'"):
        Risk(net(), lambda z, y: scale * MSE(z, y), (X, Y))


def test_constants_are_allowed():
    Risk(WithLooseWeight(trainable=False), MSE, (X, Y))
    Risk(net(), Prototypes().requires_grad_(False), (X, Y))
    model = net()
    part = {"0.weight": model[0].weight}  # the others stay as they are in the module
    assert hessian_operator(Risk(model, MSE, (X, Y), params=part), part).shape == (20, 20)
    model[0].requires_grad_(False)
    risk = Risk(model, with_penalty(model), (X, Y))
    assert set(risk.params) == {"2.weight", "2.bias"}
    x = X.clone().requires_grad_()
    assert hessian_operator(Risk(net(), MSE, (x, Y)), Risk(net(), MSE, (x, Y)).params).value > 0


def test_looking_at_the_device_of_a_parameter_is_no_read():
    model = net()

    def loss(z, y):
        assert sum(p.numel() for p in model.parameters()) == 43
        return MSE(z.to(next(model.parameters()).device), y)

    risk = Risk(model, loss, (X, Y))
    assert ggn_operator(risk, risk.params).shape == (43, 43)


# --------------------------------------------------------------------------------------------------
# Plain functions


def plain_with_penalty(model):
    def f(params):
        z = torch.func.functional_call(model, params, (X,))
        return MSE(z, Y) + sum((p**2).sum() for p in model.parameters())

    return f


@pytest.mark.parametrize("copied", [False, True])
def test_a_plain_function_that_reaches_x_through_the_module_is_refused(copied):
    model = net()
    x = {n: p.detach().clone() if copied else p for n, p in model.named_parameters()}
    with pytest.raises(FunctionError, match=r"another way, as through model.parameters\(\)"):
        hvp(plain_with_penalty(model), x, x)
    with pytest.raises(FunctionError, match="another way"):
        hessian_operator(plain_with_penalty(model), x) @ torch.ones(43).double()

    def plain(params, inputs):
        return torch.func.functional_call(model, params, (inputs,))

    with pytest.raises(FunctionError, match="another way"):
        Risk(plain, with_penalty(model), (X, Y), params=x)


def test_trainable_constants_of_a_plain_function_are_allowed(recwarn):
    model = net()  # an energy of positions
    x = torch.randn(4).double()
    expected = torch.autograd.functional.hessian(lambda x: model(x).sum(), x)
    H = hessian_operator(lambda x: model(x).sum(), x)
    assert norm(H.to_dense() - expected) <= 1e-12 * norm(expected)
    assert not recwarn.list


def test_a_module_as_f_with_its_parameters_as_x_is_refused():
    model = net()
    for call in (hessian_operator, lambda f, x: hvp(f, x, x)):
        with pytest.raises(HesseError, match=r"(?s)the module Sequential.*hesse\.Risk"):
            call(model, dict(model.named_parameters()))
    energy = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    assert hessian_operator(lambda x: energy(x[None])[0] ** 2, X[0]).shape == (4, 4)


def test_a_module_under_two_names_keeps_its_parameters():
    """torch's functional_call leaves such a module with the tensors that it was given."""
    torch.manual_seed(0)
    shared = nn.Linear(4, 4).double()
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3).double())
    before = dict(model.named_parameters())
    risk = Risk(model, MSE, (X, Y))
    ours = hessian_operator(risk, risk.params).to_dense()
    after = dict(model.named_parameters())
    assert all(after[name] is before[name] for name in before)

    def f(p):
        w, b = p["0.weight"], p["0.bias"]
        hidden = torch.tanh(torch.tanh(X @ w.T + b) @ w.T + b)
        return MSE(hidden @ p["4.weight"].T + p["4.bias"], Y)

    torch.testing.assert_close(ours, hessian_operator(f, risk.params).to_dense())
