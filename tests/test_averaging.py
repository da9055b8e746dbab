# SPDX-License-Identifier: Apache-2.0
"""Losses of batches combine to the loss of the whole, or raise, wherever batches come from."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import DataError, RandomnessError
from hesse.optimize import minimize
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

X, Y = torch.randn(256, 4).double(), torch.randint(0, 3, (256,))
CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 20.0]).double()


def class_weighted(z, y):
    return nn.functional.cross_entropy(z, y, weight=CLASS_WEIGHTS)


def batch_mean(z, y):
    return ((z - z.mean(0)) ** 2).sum(1).mean()


LOSSES = pytest.mark.parametrize(
    "loss", [class_weighted, batch_mean], ids=["class weights", "coupled"]
)


def net():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def callable_of(model):
    return lambda params, inputs: torch.func.functional_call(model, params, (inputs,))


def parameters(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


# --------------------------------------------------------------------------------------------------
# Batches of a budget, of the constructor, of other data


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
    assert counts == [2 + 4, 2, 2]  # a batch twice, its two parts; then the batches alone


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


# --------------------------------------------------------------------------------------------------
# Weights that differ between batches only

SORTED = torch.arange(3).repeat_interleave(4)
PADDED = torch.cat([torch.randint(0, 3, (9,)), torch.full((3,), -100)])
Z, INPUTS = torch.randn(12, 3).double(), torch.randn(12, 4).double()


def cross_entropy(**options):
    return nn.CrossEntropyLoss(**options)


def partial_entropy(**options):
    return functools.partial(nn.functional.cross_entropy, **options)


KNOWN = {
    "padding": (cross_entropy(), PADDED),
    "function": (nn.functional.cross_entropy, PADDED),
    "only padding in a batch": (cross_entropy(ignore_index=0), SORTED),
    "class weights": (cross_entropy(weight=CLASS_WEIGHTS), SORTED),
    "class weights and padding": (cross_entropy(weight=CLASS_WEIGHTS), PADDED),
    "smoothing": (cross_entropy(weight=CLASS_WEIGHTS, label_smoothing=0.2), PADDED),
    "partial": (partial_entropy(weight=CLASS_WEIGHTS, ignore_index=1), PADDED.clamp(min=0)),
    "likelihood": (nn.NLLLoss(weight=CLASS_WEIGHTS), PADDED),
    "probabilities": (cross_entropy(weight=CLASS_WEIGHTS), torch.softmax(Z, 1)),
    "sum": (cross_entropy(weight=CLASS_WEIGHTS, reduction="sum"), PADDED),
    "batchmean": (nn.KLDivLoss(reduction="batchmean"), torch.softmax(Z, 1)),
}


class LogSoftmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x):
        return torch.log_softmax(self.layer(x), 1)


@pytest.mark.parametrize("cut", [[4, 4, 4], [5, 7], [1] * 12])
@pytest.mark.parametrize(("loss", "y"), KNOWN.values(), ids=KNOWN)
def test_losses_of_torch_weigh_batches_by_what_they_average_over(loss, y, cut):
    model = LogSoftmax()
    batches = list(zip(INPUTS.split(cut), y.split(cut), strict=True))
    whole, risk = Risk(model, loss, (INPUTS, y)), Risk(model, loss, batches)
    loader = Risk(model, loss, DataLoader(TensorDataset(INPUTS, y), batch_size=4, shuffle=True))
    x = whole.params
    v = torch.ones(15).double()
    is_linear = isinstance(loss, (nn.NLLLoss, nn.KLDivLoss))  # in the outputs
    for make in (hessian_operator, ggn_operator)[: 1 if is_linear else 2]:
        expected = make(whole, x)
        for other in (risk, loader, whole.in_microbatches(5)):
            H = make(other, x)
            assert float(H.value) == pytest.approx(float(expected.value), rel=1e-12)
            assert norm(H @ v - expected @ v) <= 1e-11 * norm(expected.to_dense())


def test_the_weight_of_known_targets_follows_a_write_to_them():
    y = PADDED.clone()
    risk = Risk(LogSoftmax(), nn.NLLLoss(), [(INPUTS[:6], y[:6]), (INPUTS[6:], y[6:])])
    y[0] = -100
    with pytest.raises(DataError, match="the same data at every sweep"):
        risk(risk.params)


def masked_mean(z, y):
    losses = nn.functional.cross_entropy(z, y.clamp(min=0), reduction="none")
    return losses[y >= 0].mean()


def entropy_of(weight=None, ignore_index=-100):
    return lambda z, y: nn.functional.cross_entropy(z, y, weight=weight, ignore_index=ignore_index)


class Subclass(nn.CrossEntropyLoss):
    def forward(self, z, y):
        return super().forward(z, y)


UNKNOWN = {
    "padding": (entropy_of(), PADDED),
    "masked mean": (masked_mean, PADDED),
    "class weights": (entropy_of(weight=CLASS_WEIGHTS), SORTED),
    "subclass": (Subclass(), PADDED),
    "empty mean in a batch": (entropy_of(ignore_index=2), SORTED),
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize(("loss", "y"), UNKNOWN.values(), ids=UNKNOWN)
def test_other_losses_are_tried_on_every_batch(loss, y, loaded):
    model = nn.Linear(4, 3).double()
    batches = list(zip(INPUTS.split(4), y.split(4), strict=True))
    data = DataLoader(TensorDataset(INPUTS, y), batch_size=4) if loaded else batches
    with pytest.raises(DataError, match=r"(?s)batches.*weight=lambda inputs, targets: "):
        Risk(model, loss, data)
    plain = Risk(callable_of(model), loss, data)
    with pytest.raises(DataError, match="weight=lambda"):
        plain(parameters(model))
    with pytest.raises(DataError, match="weight=lambda"):
        Risk(model, loss, (INPUTS, y)).in_microbatches(4)


RIGHT = {
    "padding": (entropy_of(), PADDED, lambda _, y: (y != -100).sum()),
    "masked mean": (masked_mean, PADDED, lambda _, y: (y >= 0).sum()),
    "class weights": (
        entropy_of(weight=CLASS_WEIGHTS), SORTED, lambda _, y: CLASS_WEIGHTS[y].sum(),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "y", "weight"), RIGHT.values(), ids=RIGHT)
def test_the_line_of_the_remedy_is_right(loss, y, weight):
    model = nn.Linear(4, 3).double()
    whole = Risk(model, loss, (INPUTS, y))
    risk = Risk(model, loss, list(zip(INPUTS.split(5), y.split(5), strict=True)), weight=weight)
    assert float(risk(whole.params)) == pytest.approx(float(whole(whole.params)), rel=1e-12)
    cut = Risk(model, loss, (INPUTS, y), weight=weight).in_microbatches(2)  # some of weight zero
    assert float(cut(whole.params)) == pytest.approx(float(whole(whole.params)), rel=1e-12)


def test_a_wrong_weight_of_the_user_is_found():
    batches = list(zip(INPUTS.split(4), PADDED.split(4), strict=True))
    with pytest.raises(DataError, match="combine to the loss of the whole"):
        Risk(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), batches, weight=lambda x, _: len(x))


def test_sequences_of_different_lengths_count_by_their_elements():
    lengths = [(4, 5), (4, 9)]
    batches = [(torch.randn(*s, 4).double(), torch.randn(*s, 3).double()) for s in lengths]
    model = nn.Linear(4, 3).double()
    flat = [torch.cat([t.flatten(0, 1) for t in ts]) for ts in zip(*batches, strict=True)]
    whole, risk = Risk(model, nn.MSELoss(), tuple(flat)), Risk(model, nn.MSELoss(), batches)
    assert float(risk(risk.params)) == pytest.approx(float(whole(risk.params)), rel=1e-12)


# --------------------------------------------------------------------------------------------------
# Tolerances


def in_double(z, y):
    return nn.functional.mse_loss(z.double(), y.double())


def in_bfloat16(z, y):
    return nn.functional.mse_loss(z.bfloat16().float(), y)


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 3))

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("loss", [in_double, in_bfloat16, nn.MSELoss()])
@pytest.mark.parametrize("model", [lambda: Autocast().net, Autocast])
def test_the_tolerance_is_that_of_the_coarsest_precision(model, loss):
    x, y = torch.randn(64, 20), torch.randn(64, 3)
    batches = list(zip(x.split(16), y.split(16), strict=True))
    net = model()
    whole = Risk(net, loss, (x, y))
    value = float(Risk(net, loss, batches)(whole.params))
    assert value == pytest.approx(float(whole(whole.params)), rel=1e-2)


def test_a_small_fault_in_double_precision_is_found():
    def slightly_coupled(z, y):
        return ((z - y) ** 2).mean() * (1 + 1e-6 * len(z))

    batches = [(X[:100], X[:100, :3]), (X[100:], X[100:, :3])]
    with pytest.raises(DataError, match="combine"):
        Risk(nn.Linear(4, 3).double(), slightly_coupled, batches)


def test_batches_of_two_tasks_may_have_a_loss_each():
    def loss(z, y):
        if bool((y == 0).all()):
            return (z**2).mean()
        return (z**4).mean()

    model = nn.Linear(4, 1).double()
    tasks = [(X[:8], torch.zeros(8, 1)), (X[8:16], torch.ones(8, 1)), (X[16:24], torch.ones(8, 1))]
    risk = Risk(model, loss, tasks)
    parts = [float(loss(model(x), y).detach()) for x, y in tasks]
    assert float(risk(risk.params)) == pytest.approx(sum(parts) / 3, rel=1e-12)
