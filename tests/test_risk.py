# SPDX-License-Identifier: Apache-2.0
"""`Risk`: one function for all forms of data, and its Gauss-Newton matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import (
    DataError,
)
from hesse.risk.risk import Risk
from hesse.testing import check_operator, dense_ggn, dense_gradient, dense_hessian
from tests.small_tasks import (
    EXAMPLES,
    TASKS,
    assert_same,
    batches_of,
    classification,
    cut,
    measurements,
    regression,
)

# --------------------------------------------------------------------------------------------------
# Forms of data


@pytest.mark.some_cases(4)
@pytest.mark.fast_cases(3)
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


@pytest.mark.some_cases(7)
@pytest.mark.fast_cases(4)
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
