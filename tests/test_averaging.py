# SPDX-License-Identifier: Apache-2.0
"""Losses of batches combine to the loss of the whole, or raise: budgets, graphs, state."""

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import DataError, RandomnessError
from hesse.optimize import minimize
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm
from tests.averaged_risks import LOSSES, X, Y, callable_of, class_weighted, net, parameters

# --------------------------------------------------------------------------------------------------
# Batches of a budget, of the constructor, of other data


@pytest.mark.slow
@pytest.mark.some_cases(4)
@LOSSES
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("plain", [False, True], ids=["module", "callable"])
def test_a_budget_does_not_cut_what_cannot_be_averaged(loss, make, plain):
    model = net()
    risk = Risk(callable_of(model) if plain else model, loss, (X, Y))
    x = parameters(model)
    v = torch.ones(sum(leaf.numel() for leaf in x.values())).double()
    enough = make(risk, x, memory_budget="1 GB") @ v
    assert norm(enough - make(risk, x) @ v) <= 1e-12 * norm(enough)
    for budget in ("10 kB", "20 kB", "40 kB"):  # the first for batches of a few examples
        with pytest.raises(DataError, match="combine to the loss of the whole"):
            make(risk, x, memory_budget=budget)


def test_batches_of_one_example_are_tested_too():
    model = net()
    small = Risk(callable_of(model), class_weighted, (X, Y)).in_microbatches(1)
    with pytest.raises(DataError, match="combine to the loss of the whole"):
        small(parameters(model))


FIRST_EVALUATIONS = {
    "risk": lambda risk, x: risk(x),
    "hvp": lambda risk, x: hvp(risk, x, x),
    "hessian": hessian_operator,
    "ggn": ggn_operator,
    "minimize": minimize,
}


@LOSSES
@pytest.mark.parametrize("evaluate", FIRST_EVALUATIONS.values(), ids=FIRST_EVALUATIONS)
def test_a_plain_model_is_tested_at_its_first_evaluation(loss, evaluate):
    model = net()
    risk = Risk(callable_of(model), loss, [(X[:100], Y[:100]), (X[100:], Y[100:])])
    for _ in range(2):  # not only the first time
        with pytest.raises(DataError, match="combine to the loss of the whole"):
            evaluate(risk, parameters(model))


@LOSSES
def test_batches_given_later_are_tested_as_those_of_the_constructor(loss):
    model = net()
    batches = [(X[:100], Y[:100]), (X[100:], Y[100:])]
    risk = Risk(model, loss, (X, Y))
    with pytest.raises(DataError, match="combine to the loss of the whole"):
        risk.on(batches)
    plain = Risk(callable_of(model), loss, (X, Y)).on(batches)
    with pytest.raises(DataError, match="combine to the loss of the whole"):
        plain(parameters(model))


def test_a_loss_that_averages_is_tested_once():
    model, calls = net(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    risk = Risk(callable_of(model), nn.CrossEntropyLoss(), [(X[:100], Y[:100]), (X[100:], Y[100:])])
    whole = Risk(model, nn.CrossEntropyLoss(), (X, Y))
    counts = []
    for _ in range(3):
        calls.clear()
        value = risk(parameters(model))
        counts.append(len(calls))
    assert float(value) == pytest.approx(float(whole(whole.params)), rel=1e-12)
    assert counts == [2 + 5, 2, 2]  # a batch twice, nearby, its two parts; then the batches alone


# --------------------------------------------------------------------------------------------------
# Batches that cannot be cut


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x, adjacency):
        return self.b(torch.tanh(adjacency @ self.a(x)))


def graph(nodes):
    x, adjacency = torch.randn(nodes, 4).double(), torch.rand(nodes, nodes).double() / nodes
    return (x, adjacency), torch.randn(nodes, 3).double()


def test_graphs_have_the_weight_that_the_user_gives():
    graphs = [graph(7), graph(5)]
    with pytest.raises(DataError, match=r"(?s)fails on a slice of one.*weight=lambda"):
        Risk(Graph(), nn.MSELoss(), graphs)
    model = Graph()
    risk = Risk(model, nn.MSELoss(), graphs, weight=lambda _, targets: len(targets))
    (x, adjacency), (z, other) = [inputs for inputs, _ in graphs]
    together = torch.cat([x, z]), torch.block_diag(adjacency, other)
    whole = Risk(model, nn.MSELoss(), (together, torch.cat([y for _, y in graphs])))
    for make in (hessian_operator, ggn_operator):
        v = torch.ones(43).double()
        expected = make(whole, whole.params) @ v
        assert norm(make(risk, risk.params) @ v - expected) <= 1e-12 * norm(expected)


def test_inputs_without_a_dimension_of_examples_need_a_weight():
    edges = [torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1, 2], [1, 0, 0]])]
    model = nn.Linear(4, 3).double()

    def along_edges(params, x, edge):
        return torch.func.functional_call(model, params, (x[edge[0]] + x[edge[1]],)).mean(0)

    data = [((X[:3], edge), torch.zeros(3).double()) for edge in edges]
    arguments = lambda p, inputs: along_edges(p, *inputs), nn.MSELoss(), data
    with pytest.raises(DataError, match="first dimensions differ"):
        Risk(*arguments, params=parameters(model))
    risk = Risk(*arguments, params=parameters(model), weight=lambda *_: 1.0)
    parts = [Risk(*arguments[:2], batch, params=risk.params) for batch in data]
    mean = sum(float(part(risk.params)) for part in parts) / 2
    assert float(risk(risk.params)) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_a_graph_has_products_within_a_budget(make):
    risk = Risk(Graph(), nn.MSELoss(), graph(70))
    v = torch.ones(43).double()
    expected = make(risk, risk.params) @ v
    product = make(risk, risk.params, memory_budget="1 GB") @ v
    assert norm(product - expected) <= 1e-12 * norm(expected)
    with pytest.raises(ValueError, match="where there are no batches to be cut"):
        make(risk, risk.params, memory_budget="8 kB")


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.head(self.cell(x)[0])


def test_time_may_come_first_if_the_weight_counts_sequences():
    x, y = torch.randn(6, 8, 4).double(), torch.randn(6, 8, 3).double()
    batches = [(x[:, :5], y[:, :5]), (x[:, 5:], y[:, 5:])]
    model = TimeFirst()
    with pytest.raises(DataError, match="time comes first"):
        Risk(model, nn.MSELoss(), batches)
    risk = Risk(model, nn.MSELoss(), batches, weight=lambda inputs, _: inputs.shape[1])
    whole = Risk(model, nn.MSELoss(), (x, y))
    assert float(risk(risk.params)) == pytest.approx(float(whole(whole.params)), rel=1e-12)
    with pytest.raises(DataError, match="no memory_budget that cuts it"):
        risk.in_microbatches(3)


# --------------------------------------------------------------------------------------------------
# Models that change with every call


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.calls = nn.Linear(4, 3).double(), 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * self.calls


@pytest.mark.parametrize("plain", [False, True], ids=["module", "callable"])
def test_a_model_that_counts_its_calls_raises(plain):
    model = Counting()
    params = parameters(model)
    with pytest.raises(RandomnessError, match="let forward change nothing"):
        Risk(callable_of(model) if plain else model, nn.CrossEntropyLoss(), (X, Y), params=params)
