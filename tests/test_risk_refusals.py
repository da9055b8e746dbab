# SPDX-License-Identifier: Apache-2.0
"""What a `Risk` refuses, and the point of its operators."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hesse
from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import (
    ArgumentError,
    DataError,
    DtypeError,
    FunctionError,
    HesseError,
    RandomnessError,
    StructureError,
)
from hesse.risk.risk import Risk
from tests.small_tasks import EXAMPLES, batches_of, regression

# --------------------------------------------------------------------------------------------------
# Errors


def refused(error, match, *args, **kwargs):
    with pytest.raises(error, match=rf"(?s)expected: .*{match}.*remedy: ") as caught:
        Risk(*args, **kwargs)
    assert isinstance(caught.value, HesseError)


def test_data_of_no_known_form_are_refused():
    net, loss, x, y = regression()
    for data in ([], iter([]), DataLoader(TensorDataset(x[:0], y[:0]))):
        refused(DataError, "at least one batch", net, loss, data)
    refused(DataError, "positive weight", net, loss, (x[:0], y[:0]))
    for data in (x, 3, None, [(x, y, y)]):
        refused(DataError, "a pair", net, loss, data)
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, drop_last=True)
    refused(DataError, "the same data at every sweep", net, loss, loader)


def test_parameters_that_are_no_tree_of_tensors_are_refused():
    net, loss, x, y = regression()
    for params in ([1, 2], {"weight": "w"}, 3):
        refused(StructureError, "to be a tensor", net, loss, (x, y), params=params)


@pytest.mark.parametrize("weight", [0.1, torch.ones(8)], ids=["a number", "a tensor"])
def test_a_weight_that_is_no_function_is_refused(weight):
    net, loss, x, y = regression()
    refused(ArgumentError, "weight to be a function", net, loss, (x, y), weight=weight)
    with pytest.raises(ArgumentError, match="weight to be a function"):
        Risk(net, loss, (x, y)).on((x, y), weight=weight)


def test_data_that_change_between_two_sweeps_are_refused():
    net, loss, x, y = regression()
    data = batches_of(x, y, 7)
    risk = Risk(net, loss, data)
    data.pop()
    with pytest.raises(DataError, match="the same data at every sweep"):
        risk(risk.params)


def test_a_loss_that_is_no_scalar_or_does_not_average_is_refused():
    net, loss, x, y = regression()
    refused(ArgumentError, "reduction", net, nn.MSELoss(reduction="none"), (x, y))
    refused(FunctionError, "scalar", net, lambda z, y: (z - y) ** 2, (x, y))
    total = batches_of(x, y, 7)
    refused(DataError, "combine", net, lambda z, y: ((z - y) ** 2).sum(), total)
    refused(ArgumentError, "weight_decay >= 0", net, loss, (x, y), weight_decay=-1.0)
    refused(ArgumentError, "weight_decay >= 0", net, loss, (x, y), weight_decay=float("nan"))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm1d(4)])
def test_random_or_coupled_layers_in_train_mode_are_refused(layer):
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    refused(RandomnessError, "deterministic", net, nn.MSELoss(), (x, y))
    risk = Risk(net.eval(), nn.MSELoss(), (x, y))
    net.train()
    with pytest.raises(RandomnessError, match=r"model.eval\(\)"):
        hessian_operator(risk, risk.params).to_dense()


def test_noise_in_the_model_is_refused():
    def model(p, x):
        return x @ p + torch.randn(len(x))

    data = torch.randn(6, 3), torch.randn(6)
    refused(RandomnessError, "deterministic", model, nn.MSELoss(), data, params=torch.ones(3))


def test_parameters_that_are_not_the_models_are_refused():
    net, loss, x, y = regression()
    risk = Risk(net, loss, (x, y))
    with pytest.raises(StructureError, match="unknown names"):
        risk({**risk.params, "nonsense": x})
    with pytest.raises(StructureError, match="a mapping from names"):
        risk(list(risk.params.values()))
    with pytest.raises(ArgumentError, match="params="):
        _ = Risk(lambda p, x: x @ p, loss, (x, y)).params


VERBS = {
    "value": lambda risk, p: risk(p),
    "hvp": lambda risk, p: hesse.hvp(risk, p, p),
    "hessian": lambda risk, p: hessian_operator(risk, p).gradient,
    "ggn": lambda risk, p: ggn_operator(risk, p).to_dense(),
    "fisher": hesse.fisher_operator,
    "jacobian": hesse.jacobian_operator,
    "kfac": hesse.kfac_operator,
    "losses": lambda risk, p: risk.per_example.losses(p),
    "kernel": lambda risk, p: hesse.apps.ntk(risk.model, p, risk.data.first.inputs),
    "minimize": hesse.minimize,
    "influence": lambda risk, p: hesse.apps.influence(risk, p, lambda q: q["2.bias"].sum()),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("names", [["0.weight", "0.bias", "2.weight", "2.bias"], ["2.weight"]])
def test_parameters_of_another_dtype_are_named(verb, names):
    net, loss, x, y = regression()
    risk = Risk(net, loss, (x, y))
    params = {**risk.params, **{name: risk.params[name].float() for name in names}}
    match = rf"params\['{names[0]}'\] of float64, as the model has it\n  got:      float32"
    with pytest.raises(DtypeError, match=match):
        verb(risk, params)


def test_parameters_of_a_callable_or_inputs_of_another_dtype_are_named():
    net, loss, x, y = regression()
    risk = Risk(lambda w, x: x @ w, loss, (x, y[:, 0]), params=torch.ones(3).double())
    with pytest.raises(DtypeError, match="expected: params of float64, as the inputs are"):
        risk(torch.ones(3))
    with pytest.raises(DtypeError, match="inputs of float64, as the parameters"):
        hesse.apps.ntk(net, x=x.float())


def test_parameters_of_another_dtype_serve_where_all_are_and_inputs_are_integers():
    net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2))
    x, y = torch.arange(5), torch.arange(5) % 2
    risk = Risk(net, nn.CrossEntropyLoss(), (x, y))
    exact = risk({name: leaf.double() for name, leaf in risk.params.items()})
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), risk(risk.params))


def test_a_gauss_newton_matrix_that_would_be_zero_is_refused():
    net, _, x, y = regression()
    linear = Risk(net, lambda z, y: z.mean(), (x, y))
    with pytest.raises(FunctionError, match="curved in the outputs"):
        ggn_operator(linear, linear.params) @ torch.ones(26).double()
    forgetful = Risk(lambda p, x: net(x), nn.MSELoss(), (x, y), params=torch.ones(2).double())
    with pytest.raises(FunctionError, match="depend on x"):
        ggn_operator(forgetful, forgetful.params) @ torch.ones(2).double()
    with pytest.raises(FunctionError, match=r"hesse\.Risk"):
        ggn_operator(lambda p: (p**2).sum(), x)


# --------------------------------------------------------------------------------------------------
# The point


@pytest.mark.parametrize("operator", [hessian_operator, ggn_operator])
def test_without_a_point_an_operator_is_that_of_the_model_as_it_is_now(operator):
    net, loss, x, y = regression()
    risk = Risk(net, loss, (x, y))
    at_construction = operator(risk, risk.params).to_dense()
    torch.testing.assert_close(operator(risk).to_dense(), at_construction)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    now = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    A = operator(risk)
    torch.testing.assert_close(A.to_dense(), operator(risk, now).to_dense())
    assert float((A.to_dense() - at_construction).norm()) > 1e-3
    with torch.no_grad():
        next(net.parameters()).zero_()
    torch.testing.assert_close(A.to_dense(), operator(risk, now).to_dense())  # the point is copied


def test_without_a_point_only_some_parameters_or_those_of_a_callable():
    net, loss, x, y = regression()
    params = {"2.bias": torch.zeros(2).double()}
    assert hessian_operator(Risk(net, loss, (x, y), params=params)).shape == (2, 2)
    w = torch.ones(3).double()
    risk = Risk(lambda w, x: x @ w, loss, (x, y[:, 0]), params=w)
    torch.testing.assert_close(hessian_operator(risk).to_dense(), 2 * x.T @ x / EXAMPLES)
    with pytest.raises(ArgumentError, match="params=params"):
        hessian_operator(Risk(lambda w, x: x @ w, loss, (x, y[:, 0])))
    with pytest.raises(ArgumentError, match="x, the point"):
        hessian_operator(lambda x: (x**2).sum())
