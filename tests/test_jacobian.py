# SPDX-License-Identifier: Apache-2.0
"""The Jacobian against torch.func and closed forms: any output tree, batches, its adjoint."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from hesse import Risk, ggn_operator, hessian_operator, jacobian_operator
from hesse.errors import DataError, FunctionError, HesseError, ShapeError
from hesse.testing import check_operator
from tests.feature_networks import Apply

DOUBLE = torch.float64
MODES = ["auto", "traced-split", "retained-graph"]


def network(*widths):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh()))).double()


def data(*sizes):
    torch.manual_seed(1)
    return [(torch.randn(n, 4).double(), torch.randn(n, 3).double()) for n in sizes]


def dense(model, inputs, params):
    jacobians = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (inputs,)))(params)
    rows = sum(jacobians[name].numel() // leaf.numel() for name, leaf in [*params.items()][:1])
    return torch.cat([jacobians[name].reshape(rows, -1) for name in params], dim=1)


def trees(x):
    p, q = x["p"], x["q"]
    return {"outer": p.sin().outer(q), "pair": [(q**2).sum(), (p * p.flip(0)).exp()]}


@pytest.mark.parametrize("mode", MODES)
def test_any_output_tree(mode):
    x = {"p": torch.randn(3, dtype=DOUBLE), "q": torch.randn(2, dtype=DOUBLE)}
    J = jacobian_operator(trees, x, mode=mode)
    leaves = torch.func.jacrev(trees)(x)
    flat = [leaves["outer"], *leaves["pair"]]
    expected = torch.cat(
        [torch.cat([part[k].reshape(-1, x[k].numel()) for k in x], dim=1) for part in flat]
    )
    assert J.shape == (10, 5)
    for _ in range(3):
        torch.testing.assert_close(J.to_dense(), expected)
        torch.testing.assert_close(J.T.to_dense(), expected.T)
    pushed = J @ {"p": torch.ones(3, dtype=DOUBLE), "q": torch.ones(2, dtype=DOUBLE)}
    assert pushed["pair"][0].shape == ()
    check_operator(J)


@pytest.mark.parametrize("mode", MODES)
def test_batches_are_concatenated(mode):
    model, batches = network(4, 6, 3), data(8, 8, 3)
    risk = Risk(model, nn.MSELoss(), batches, weight_decay=0.3)
    J = jacobian_operator(risk, risk.params, mode=mode)
    expected = dense(model, torch.cat([inputs for inputs, _ in batches]), risk.params)
    u, v = J.codomain.gaussian(), J.domain.gaussian()
    for _ in range(4):
        torch.testing.assert_close(J @ v, expected @ v)
        torch.testing.assert_close(J.T @ u, expected.T @ u)
    assert J.codomain.shapes == (torch.Size([19, 3]),)
    moved = {name: leaf + 0.1 for name, leaf in risk.params.items()}
    near = dense(model, torch.cat([inputs for inputs, _ in batches]), moved)
    torch.testing.assert_close(J.at(moved) @ v, near @ v)
    torch.testing.assert_close(J.at(moved).T @ u, near.T @ u)


def test_two_outputs_of_a_model_on_several_batches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return {"a": self.a(x).tanh(), "b": self.b(x)}

    model, batches = Two(), data(5, 2)
    risk = Risk(model, lambda z, y: ((z["b"] - y) ** 2).mean() + z["a"].mean(), batches)
    J, whole = (
        jacobian_operator(r, risk.params)
        for r in (risk, risk.on((torch.cat([x for x, _ in batches]), torch.zeros(7, 3).double())))
    )
    v, u = J.domain.gaussian(), J.codomain.gaussian()
    torch.testing.assert_close(J @ v, whole @ v)
    torch.testing.assert_close(J.T @ u, whole.T @ u)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_adjoint_and_linearity(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, n, generator=generator, dtype=DOUBLE)
    x, v, w = (torch.randn(n, generator=generator, dtype=DOUBLE) for _ in range(3))
    u = torch.randn(m, generator=generator, dtype=DOUBLE)
    J = jacobian_operator(lambda x: (A @ x).tanh(), x)
    torch.testing.assert_close(u @ (J @ v), (J.T @ u) @ v)
    torch.testing.assert_close(J @ (2 * v - w), 2 * (J @ v) - J @ w)


def test_a_gauss_newton_matrix_is_made_of_it():
    risk = Risk(network(4, 6, 3), nn.MSELoss(reduction="sum"), data(9))
    J = jacobian_operator(risk, risk.params)
    G = ggn_operator(risk, risk.params)
    v = J.domain.gaussian()
    torch.testing.assert_close(2.0 * (J.T @ (J @ v)), G @ v)


def test_products_take_two_thirds_and_two_thirds_of_a_gradient():
    model, batches = network(4, 50, 50, 3), data(64)
    risk = Risk(model, nn.MSELoss(), batches)
    J = jacobian_operator(risk, risk.params, mode="traced-split")
    v, u = J.domain.gaussian(), J.codomain.gaussian()
    J @ v, J.T @ u
    with FlopCounterMode(display=False) as gradient:
        risk(dict(model.named_parameters())).backward()
    counts = []
    for product in (lambda: J @ v, lambda: J.T @ u):
        with FlopCounterMode(display=False) as counter:
            product()
        counts.append(counter.get_total_flops() / gradient.get_total_flops())
    assert max(counts) <= 0.75


def test_a_loader_in_another_order_is_refused():
    torch.manual_seed(0)
    loader = DataLoader(
        TensorDataset(torch.randn(64, 4).double(), torch.randn(64, 3).double()), 4, shuffle=True
    )
    risk = Risk(network(4, 3), nn.MSELoss(), loader)
    J = jacobian_operator(risk, risk.params)
    v = J.domain.gaussian()

    def products():
        return [J @ v for _ in range(3)]

    with pytest.raises(DataError, match=r"the same order.*\n.*\n.*list\(loader\)"):
        products()


def test_what_has_no_jacobian_is_refused():
    with pytest.raises(FunctionError, match="depend on x"):
        jacobian_operator(lambda x: torch.ones(3), torch.ones(2)) @ torch.ones(2)
    with pytest.raises(FunctionError, match="several outputs"):
        _ = jacobian_operator(lambda x: x * x, torch.ones(2)).value
    ragged = [(torch.randn(n, 4), torch.randn(())) for n in (2, 3)]
    risk = Risk(lambda p, x: p * x.sum(0), lambda z, y: z.sum(), ragged, reduction="sum",
                params=torch.ones(4))  # fmt: skip
    J = jacobian_operator(risk, risk.params)
    assert J.shape == (8, 4)
    scalars = Risk(lambda p, x: (p * x).sum(), lambda z, y: z, ragged, reduction="sum",
                   params=torch.ones(4))  # fmt: skip
    with pytest.raises(ShapeError, match="concatenated"):
        jacobian_operator(scalars, scalars.params)


class SquaredOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        return 2 * ctx.saved_tensors[0] * grads[0]


@pytest.mark.parametrize("sizes", [(3,), (2, 3)])
def test_the_adjoint_needs_one_derivative_only(sizes):
    model, batches = network(4, 3), data(*sizes)
    risk = Risk(nn.Sequential(model, Apply(SquaredOnce.apply)), nn.MSELoss(), batches)
    J = jacobian_operator(risk, risk.params)
    inputs = torch.cat([x for x, _ in batches])
    squared = nn.Sequential(model, Apply(torch.square))
    u = torch.randn(J.shape[0], dtype=DOUBLE)
    torch.testing.assert_close(J.T @ u, dense(squared, inputs, risk.params).T @ u)
    with pytest.raises(HesseError, match="once_differentiable"):
        J @ torch.ones(J.shape[1], dtype=DOUBLE)


def test_no_grad_around_products_of_several_batches():
    batches = data(2, 3)
    risk = Risk(network(4, 3), nn.MSELoss(), batches)
    expected = dense(risk.model, torch.cat([x for x, _ in batches]), risk.params)
    u = torch.randn(15, dtype=DOUBLE)
    with torch.no_grad():
        torch.testing.assert_close(jacobian_operator(risk, risk.params).T @ u, expected.T @ u)


class Residual(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return x + self.layer(x)


def test_a_gradient_is_not_written_over_while_it_is_multiplied():
    """g + g W, the backward pass of x + W x, in one operation that reads g twice."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3), Residual(nn.Linear(3, 3)), nn.Linear(3, 3)).double()
    inputs, x = torch.randn(4, 1, dtype=DOUBLE), dict(model.named_parameters())
    u = torch.randn(12, dtype=DOUBLE)
    J = jacobian_operator(
        lambda p: torch.func.functional_call(model, p, (inputs,)), x, mode="traced-split"
    )
    torch.testing.assert_close(J.T @ u, dense(model, inputs, x).T @ u)


UNSEEN = [
    nn.CrossEntropyLoss(ignore_index=1),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 2.0], dtype=DOUBLE)),
]


@pytest.mark.parametrize("loss", UNSEEN)
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("form", [list, lambda pairs: DataLoader(pairs, batch_size=None)])
def test_a_batch_that_the_loss_ignores_has_outputs_and_inputs(loss, order, form):
    torch.manual_seed(1)
    model = network(4, 3)
    batches = [
        (torch.randn(3, 4, dtype=DOUBLE), torch.tensor([0, 1, 2])),
        (torch.randn(2, 4, dtype=DOUBLE), torch.tensor([1, 1])),
    ][::order]
    risk = Risk(model, loss, form(batches))
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    J = jacobian_operator(risk, risk.params)
    torch.testing.assert_close(J.to_dense(), dense(model, inputs, risk.params))
    H = hessian_operator(risk, risk.params, with_respect_to="inputs")
    expected = torch.func.hessian(lambda x: loss(model(x), targets))(inputs)
    torch.testing.assert_close(H.to_dense(), expected.reshape(20, 20).detach())


@pytest.mark.parametrize("call", [2, 3])
def test_outputs_of_another_length_in_a_later_evaluation_are_refused(call):
    """A function that leaves out entries: the second evaluation is that of the first product."""
    calls = []

    def g(x):
        calls.append(1)
        return torch.sinh(x)[: -1 if len(calls) == call else None]

    x = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    J = jacobian_operator(g, x)
    products = [lambda: J.T @ x, lambda: J @ x]
    if call == 3:  # a new graph
        products[0]()
        J = J.at(2.0 * x)
    for product in products:
        if len(calls) < call or J is None:
            with pytest.raises(FunctionError, match="outputs of the same shapes at every"):
                product()
