# SPDX-License-Identifier: Apache-2.0
"""`Risk`: one function for all forms of data, its Gauss-Newton matrix, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import (
    ArgumentError,
    DataError,
    FunctionError,
    HesseError,
    RandomnessError,
    StructureError,
)
from hesse.risk.risk import Risk
from hesse.testing import check_operator, dense_ggn, dense_gradient, dense_hessian
from hesse.vectors.inner_products import norm

EXAMPLES = 23


def regression():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return net, nn.MSELoss(), torch.randn(EXAMPLES, 3).double(), torch.randn(EXAMPLES, 2).double()


def classification():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return net, nn.CrossEntropyLoss(), torch.randn(EXAMPLES, 3).double(), torch.arange(EXAMPLES) % 3


def binary():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    y = (torch.arange(EXAMPLES) % 2).double()[:, None]
    return net, nn.BCEWithLogitsLoss(), torch.randn(EXAMPLES, 3).double(), y


TASKS = [regression, classification, binary]


def cut(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def batches_of(x, y, size):
    return cut(x, y, [min(size, len(x) - i) for i in range(0, len(x), size)])


def measurements(risk, params=None):
    """Value, gradient, a Hessian and a Gauss-Newton product, in one vector."""
    params = risk.params if params is None else params
    H, G = hessian_operator(risk, params), ggn_operator(risk, params)
    v = torch.linspace(-1, 1, H.shape[0]).double()
    parts = [H.value.view(1), H.flat_gradient, H @ v, G.value.view(1), G.flat_gradient, G @ v]
    return torch.cat([*parts, hvp(risk, params, v)])


def assert_same(a, b, rtol=1e-10):
    assert norm(a - b) <= rtol * norm(b)


# --------------------------------------------------------------------------------------------------
# Forms of data


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_batches_of_any_size_give_the_same_risk(task, decay):
    net, loss, x, y = task()
    whole = measurements(Risk(net, loss, (x, y), weight_decay=decay))
    for size in (1, 7):
        assert_same(measurements(Risk(net, loss, batches_of(x, y, size), decay)), whole)


@given(cuts=st.sets(st.integers(1, EXAMPLES - 1), max_size=6))
@settings(max_examples=8)
def test_ragged_batches_give_the_same_risk(cuts):
    torch.manual_seed(0)
    net, loss, x, y = classification()
    whole = measurements(Risk(net, loss, (x, y), 0.1))
    edges = [0, *sorted(cuts), EXAMPLES]
    sizes = torch.tensor(edges).diff().tolist()
    assert_same(measurements(Risk(net, loss, cut(x, y, sizes), 0.1)), whole)


def test_loaders_iterators_lists_and_pairs_give_the_same_risk():
    net, loss, x, y = classification()
    dataset, list_ = TensorDataset(x, y), batches_of(x, y, 7)
    whole = measurements(Risk(net, loss, (x, y)))
    forms = [
        [x, y],
        list_,
        tuple(list_),
        iter(list_),
        (batch for batch in list_),
        DataLoader(dataset, batch_size=7),
        DataLoader(dataset, batch_size=7, shuffle=True),
    ]
    for data in forms:
        assert_same(measurements(Risk(net, loss, data)), whole)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2).double()

    def forward(self, a, b, labels=None):
        return torch.tanh(self.net(a)) * b


def test_tuples_are_positional_and_mappings_keyword_arguments():
    net, a, b = TwoInputs(), torch.randn(6, 3).double(), torch.randn(6, 2).double()
    y = torch.randn(6, 2).double()
    mse = nn.functional.mse_loss
    positional = measurements(Risk(net, mse, ((a, b), y)))
    assert_same(measurements(Risk(net, mse, ({"a": a, "b": b}, y))), positional)
    whole = {"a": a, "b": b, "labels": y}
    parts = [{key: t[i : i + 3] for key, t in whole.items()} for i in (0, 3)]
    for data in (whole, parts):
        risk = Risk(net, lambda z, batch: mse(z, batch["labels"]), data)
        assert_same(measurements(risk), positional)


def test_a_weight_counts_tokens_where_the_loss_averages_over_them():
    x, y = torch.randn(6, 4, 3).double(), torch.randint(0, 3, (6, 4))
    y[0, 1:], y[2, 2:], y[4, 3:] = -100, -100, -100
    net = nn.Linear(3, 3).double()

    def loss(z, y):
        return nn.functional.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=-100)

    def tokens(inputs, targets):
        return (targets != -100).sum()

    whole = measurements(Risk(net, loss, (x, y)))
    batches = batches_of(x, y, 2)
    assert_same(measurements(Risk(net, loss, batches, weight=tokens)), whole)
    with pytest.raises(DataError, match="weight="):
        Risk(net, loss, batches)


def test_a_loss_that_sums_is_summed_over_batches():
    net, _, x, y = regression()
    loss = nn.MSELoss(reduction="sum")
    whole = Risk(net, loss, (x, y), 0.2)
    batches = batches_of(x, y, 7)
    assert_same(measurements(Risk(net, loss, batches, 0.2)), measurements(whole))
    plain = Risk(net, lambda z, y: ((z - y) ** 2).sum(), batches, 0.2, reduction="sum")
    assert_same(measurements(plain), measurements(whole))
    params = {name: p.detach() for name, p in net.named_parameters()}
    squares = sum(float((p**2).sum()) for p in params.values())
    assert float(whole(params)) == pytest.approx(
        float(((net(x) - y) ** 2).sum().detach()) + 0.1 * squares, rel=1e-13
    )


def test_other_data_keep_the_model_the_loss_and_the_decay():
    net, loss, x, y = regression()
    risk = Risk(net, loss, (x, y), 0.2).on((x[:5], y[:5]))
    assert_same(measurements(risk), measurements(Risk(net, loss, (x[:5], y[:5]), 0.2)))


def test_a_loader_may_be_read_in_inference_mode():
    net, loss, x, y = classification()
    expected = measurements(Risk(net, loss, (x, y)))
    with torch.inference_mode():
        result = measurements(Risk(net, loss, DataLoader(TensorDataset(x, y), batch_size=7)))
    assert_same(result, expected)


# --------------------------------------------------------------------------------------------------
# Value, derivatives and Gauss-Newton matrix


@pytest.mark.parametrize("batched", [False, True])
def test_the_risk_is_differentiable_and_agrees_with_the_definition(batched):
    net, loss, x, y = regression()
    risk = Risk(net, loss, batches_of(x, y, 7) if batched else (x, y), weight_decay=0.3)

    def definition(params):
        outputs = torch.func.functional_call(net, params, (x,))
        return loss(outputs, y) + 0.15 * sum((p**2).sum() for p in params.values())

    params = {name: p.clone().requires_grad_() for name, p in risk.params.items()}
    value = risk(params)
    assert float(value.detach()) == pytest.approx(float(definition(params).detach()), rel=1e-13)
    grads = torch.autograd.grad(value, list(params.values()))
    exact = dense_gradient(definition, risk.params)
    assert_same(torch.cat([g.flatten() for g in grads]), exact, 1e-12)
    H = dense_hessian(definition, risk.params)
    assert_same(hessian_operator(risk, risk.params).to_dense().flatten(), H.flatten(), 1e-12)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("task", TASKS)
def test_the_gauss_newton_matrix_is_its_definition_and_semi_definite(task, decay, batched):
    net, loss, x, y = task()
    risk = Risk(net, loss, batches_of(x, y, 7) if batched else (x, y), decay)
    G = ggn_operator(risk, risk.params)
    expected = dense_ggn(
        lambda p: torch.func.functional_call(net, p, (x,)), lambda z: loss(z, y), risk.params
    )
    expected += decay * torch.eye(len(expected)).double()
    dense = G.to_dense()
    assert_same(dense.flatten(), expected.flatten(), 1e-12)
    assert float(torch.linalg.eigvalsh((dense + dense.T) / 2).min()) >= decay - 1e-14
    v = torch.linspace(-1, 2, len(expected)).double()
    assert float(G.curvature(v)) == pytest.approx(float(v @ expected @ v), rel=1e-12)
    check_operator(G)


def test_a_linear_model_has_its_hessian_as_gauss_newton_matrix():
    net, x, y = nn.Linear(3, 2).double(), torch.randn(9, 3).double(), torch.randn(9, 2).double()
    risk = Risk(net, nn.MSELoss(), (x, y))
    H, G = hessian_operator(risk, risk.params), ggn_operator(risk, risk.params)
    assert_same(G.to_dense().flatten(), H.to_dense().flatten(), 1e-13)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


def test_tied_weights_appear_once_and_both_uses_count():
    net, tokens, y = Tied().double(), torch.tensor([0, 1, 1, 3]), torch.tensor([1, 2, 0, 4])
    risk = Risk(net, nn.CrossEntropyLoss(), (tokens, y))
    assert list(risk.params) == ["embed.weight"]

    def definition(p):
        z = torch.tanh(p["embed.weight"][tokens]) @ p["embed.weight"].T
        return nn.functional.cross_entropy(z, y)

    H = dense_hessian(definition, risk.params)
    assert_same(hessian_operator(risk, risk.params).to_dense().flatten(), H.flatten(), 1e-12)


def test_frozen_parameters_are_left_out_or_have_zero_rows():
    net, loss, x, y = regression()
    full = Risk(net, loss, (x, y), 0.5)
    H, G = (op(full, full.params).to_dense() for op in (hessian_operator, ggn_operator))
    net[0].weight.requires_grad_(False)
    risk = Risk(net, loss, (x, y), 0.5)
    assert "0.weight" not in risk.params
    n = net[0].weight.numel()
    for op, dense in ((hessian_operator, H), (ggn_operator, G)):
        trainable = op(risk, risk.params).to_dense()
        assert_same(trainable.flatten(), dense[n:, n:].flatten(), 1e-12)
        frozen = op(risk, dict(net.named_parameters())).to_dense()
        assert_same(frozen[n:, n:].flatten(), dense[n:, n:].flatten(), 1e-12)
        assert not frozen[:n].any()
        assert not frozen[:, :n].any()


def test_buffers_are_constants_and_stay_as_they_are():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(EXAMPLES, 3).double(), torch.randn(EXAMPLES, 2).double()
    net(x)
    net.eval()
    before = {name: b.clone() for name, b in net.named_buffers()}
    whole = measurements(Risk(net, nn.MSELoss(), (x, y)))
    assert_same(measurements(Risk(net, nn.MSELoss(), batches_of(x, y, 7))), whole)
    assert all(torch.equal(before[name], b) for name, b in net.named_buffers())


def test_the_params_are_a_copy_of_the_module_at_construction():
    net, loss, x, y = regression()
    risk = Risk(net, loss, (x, y))
    before = measurements(risk)
    with torch.no_grad():
        net[0].weight.add_(1.0)
    assert torch.equal(measurements(risk), before)
    assert all(p.grad is None for p in net.parameters())


def test_a_plain_callable_serves_as_a_model_with_any_tree():
    x, y = torch.randn(8, 3).double(), torch.randn(8).double()
    params = (torch.randn(3).double(), [torch.randn(()).double()])
    risk = Risk(lambda p, x: torch.tanh(x @ p[0] + p[1][0]), nn.MSELoss(), (x, y), params=params)
    H = dense_hessian(lambda p: ((torch.tanh(x @ p[0] + p[1][0]) - y) ** 2).mean(), params)
    assert risk.params is params
    assert_same(hessian_operator(risk, params).to_dense().flatten(), H.flatten(), 1e-12)


class Slope(nn.Module):
    """du/dt of a network u(t), as in a PINN."""

    def __init__(self):
        super().__init__()
        self.u = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def forward(self, t):
        t = t.clone().requires_grad_()
        return torch.autograd.grad(self.u(t).sum(), t, create_graph=True)[0]


def test_a_model_may_differentiate_itself_in_its_inputs():
    t = torch.linspace(0, 1, EXAMPLES).double()[:, None]
    net = Slope()
    whole = measurements(Risk(net, nn.MSELoss(), (t, t)))
    assert_same(measurements(Risk(net, nn.MSELoss(), batches_of(t, t, 7))), whole)


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
