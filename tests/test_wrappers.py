# SPDX-License-Identifier: Apache-2.0
"""Modules in wrappers, and outputs in objects, are taken like those without."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.distributions import AffineTransform, Independent, Normal, TransformedDistribution

import hesse
from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import DtypeError, FunctionError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

X, Y = torch.randn(9, 4).double(), torch.randn(9, 3).double()


def net(outputs=3):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPPERS = {
    "data parallel": (nn.DataParallel, "module."),
    "distributed": (nn.parallel.DistributedDataParallel, "module."),
    "compiled": (torch.compile, "_orig_mod."),
    "both": (lambda m: nn.DataParallel(torch.compile(m)), "module._orig_mod."),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
@pytest.mark.parametrize(("wrap", "prefix"), WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapper_has_the_curvature_of_its_module(wrap, prefix, make):
    model = net()
    risk, wrapped = Risk(model, nn.MSELoss(), (X, Y)), Risk(wrap(model), nn.MSELoss(), (X, Y))
    assert list(wrapped.params) == [prefix + name for name in risk.params]
    v = torch.ones(43).double()
    expected = make(risk, risk.params) @ v
    for params in (wrapped.params, dict(wrapped.model.named_parameters())):
        assert norm(make(wrapped, params) @ v - expected) <= 1e-12 * norm(expected)
    assert not any(p.grad is not None for p in model.parameters())


def test_a_penalty_over_the_parameters_of_a_wrapper_is_differentiated():
    model = nn.DataParallel(net())

    def loss(z, y):
        return nn.functional.mse_loss(z, y) + sum((p**4).sum() for p in model.parameters())

    risk = Risk(model, loss, (X, Y))
    slope = torch.autograd.grad(loss(model(X), Y), list(model.parameters()))
    slope = torch.cat([g.flatten() for g in slope])
    gradient = hessian_operator(risk, risk.params).flat_gradient
    assert norm(gradient - slope) <= 1e-12 * norm(slope)


# --------------------------------------------------------------------------------------------------
# Outputs


@dataclass(frozen=True)
class Result:
    prediction: torch.Tensor
    name: str = "result"


class Holder:
    def __init__(self, z):
        self.parts = [z[:, :3]]
        self.me = self


def shifted(z):
    base = Normal(torch.zeros(9, 3).double(), 1.0)
    return TransformedDistribution(base, [AffineTransform(z[:, :3], z[:, 3:].exp())])


def likelihood(d, y):
    return -d.log_prob(y).mean()


def squares(prediction, y):
    return (prediction - y).square().mean()


OUTPUTS = {
    "dataclass": (lambda z: Result(z[:, :3]), lambda o, y: squares(o.prediction, y)),
    "namespace": (lambda z: SimpleNamespace(z=z[:, :3]), lambda o, y: squares(o.z, y)),
    "object": (Holder, lambda o, y: squares(o.parts[0], y)),
    "nested": (lambda z: {"a": [Result(z[:, :3])]}, lambda o, y: squares(o["a"][0].prediction, y)),
    "same twice": (lambda z: (z, z), lambda o, y: squares(o[0][:, :3], y) + o[1].square().mean()),
    "normal": (lambda z: Normal(z[:, :3], z[:, 3:].exp()), likelihood),
    "independent": (lambda z: Independent(Normal(z[:, :3], z[:, 3:].exp()), 1), likelihood),
    "transformed": (shifted, likelihood),
}


class Returning(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.net, self.form = net(6), form

    def forward(self, x):
        return self.form(self.net(x))


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("mode", ["auto", "traced-split"])
@pytest.mark.parametrize(("form", "loss"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_in_objects_have_a_gauss_newton_matrix(form, loss, mode):
    model = Returning(form)
    risk = Risk(model, loss, (X, Y))
    G, H = ggn_operator(risk, risk.params, mode=mode), hessian_operator(risk, risk.params)
    assert norm(G.flat_gradient - H.flat_gradient) <= 1e-12 * norm(H.flat_gradient)
    raw = Risk(model.net, lambda z, y: loss(form(z), y), (X, Y))  # the same, with tensors between
    if loss is likelihood:
        return  # scales are outputs here, their logarithms there
    expected = ggn_operator(raw, raw.params).to_dense()
    assert norm(G.to_dense() - expected) <= 1e-12 * norm(expected)


def test_the_gauss_newton_matrix_of_a_normal_is_its_fisher_matrix_in_the_mean():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3).double()

        def forward(self, x):
            return Normal(self.layer(x), 0.5)

    model = Mean()
    risk = Risk(model, likelihood, (X, Y))
    square = Risk(model.layer, nn.MSELoss(), (X, Y), params=dict(model.layer.named_parameters()))
    expected = ggn_operator(square, square.params).to_dense() * 2.0  # 1 / (2 sigma^2)
    assert norm(ggn_operator(risk, risk.params).to_dense() - expected) <= 1e-12 * norm(expected)


def test_outputs_without_a_dependence_are_named_with_the_forms_there_are():
    risk = Risk(
        Returning(lambda z: {"z": z.detach()}), lambda o, y: squares(o["z"][:, :3], y), (X, Y)
    )
    with pytest.raises(FunctionError, match="dataclass or distribution"):
        ggn_operator(risk, risk.params) @ torch.ones(61).double()


# --------------------------------------------------------------------------------------------------
# Complex numbers


def test_complex_parameters_are_refused_with_their_real_form():
    z = torch.randn(3, dtype=torch.complex128)

    def f(z):
        return (z.abs() ** 4).sum()

    model = nn.Linear(4, 3, dtype=torch.complex128)
    for call in (
        lambda: hvp(f, z, z),
        lambda: hessian_operator(f, z),
        lambda: Risk(model, lambda z, y: z.abs().square().mean(), (X.cdouble(), Y)),
    ):
        with pytest.raises(DtypeError, match=r"torch.view_as_real\(x\)"):
            call()
    x = torch.view_as_real(z)
    expected = torch.autograd.functional.hessian(lambda x: f(torch.view_as_complex(x)), x)
    H = hessian_operator(lambda x: f(torch.view_as_complex(x)), x).to_dense()
    assert norm(H - expected.reshape(6, 6)) <= 1e-12 * norm(H)


class Phases(nn.Module):
    """Complex outputs of real parameters; `as_real` gives their parts."""

    def __init__(self, as_real):
        super().__init__()
        self.w, self.as_real = nn.Parameter(torch.randn(4, 3, 2)), as_real

    def forward(self, x):
        z = torch.complex(x, x * x) @ torch.view_as_complex(self.w)
        return torch.view_as_real(z) if self.as_real else z


def power(z, y):
    z = z if z.is_complex() else torch.view_as_complex(z)
    return (z.abs().square() - y.float()).square().mean()


REAL_MATRICES = {
    "ggn": lambda risk: hesse.ggn_operator(risk) @ torch.ones(24),
    "kfac": hesse.kfac_operator,
    "diagonal": lambda risk: hesse.diagonal(hesse.ggn_operator(risk)),
    "jacobian": lambda risk: hesse.jacobian_operator(risk, risk.params),
    "ntk": hesse.ntk_operator,
}


@pytest.mark.parametrize("matrix", REAL_MATRICES)
def test_complex_outputs_are_refused_with_their_real_form(matrix):
    complex_risk, real_risk = (Risk(Phases(real), power, (X.float(), Y)) for real in (False, True))
    with pytest.raises(DtypeError, match=r"eturn .*torch.view_as_real\(z\)"):
        REAL_MATRICES[matrix](complex_risk)
    REAL_MATRICES[matrix](real_risk)


def test_the_hessian_of_complex_outputs_is_that_of_their_real_form():
    torch.manual_seed(0)
    risks = [Risk(Phases(real), power, (X.float(), Y)) for real in (False, True)]
    A, B = (hessian_operator(risk, risks[0].params).to_dense() for risk in risks)
    torch.testing.assert_close(A, B)
