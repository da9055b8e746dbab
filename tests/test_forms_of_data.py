# SPDX-License-Identifier: Apache-2.0
"""Every form of data that a DataLoader collates is taken; mistakes are refused with a remedy."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.errors import ArgumentError, DataError, DtypeError, FunctionError, HesseError
from hesse.risk.risk import Risk

X, Y, C = torch.randn(8, 4), torch.randn(8, 3), torch.randint(0, 3, (8,))
MSE = nn.MSELoss()
Pair = namedtuple("Pair", "x y")
Split = namedtuple("Split", "inputs targets")


class Both(nn.Module):
    """Of two inputs, given in any form."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, a, b, **others):
        return self.one(a).tanh() + self.two(b)


def loss(z, targets):
    first, second = targets.values() if isinstance(targets, dict) else targets
    return MSE(z, first) + (z - second).abs().mean()


FORMS = {
    "tuples": lambda a, b, y, w: ((a, b), (y, w)),
    "lists": lambda a, b, y, w: [[a, b], [y, w]],
    "list in a tuple": lambda a, b, y, w: ([a, b], [y, w]),
    "namedtuple": lambda a, b, y, w: Split((a, b), (y, w)),
    "namedtuples": lambda a, b, y, w: ((a, b), Pair(y, w)),
    "mappings": lambda a, b, y, w: ({"a": a, "b": b}, {"y": y, "w": w}),
    "mapping and tuple": lambda a, b, y, w: ({"a": a, "b": b}, (y, w)),
    "list of mappings": lambda a, b, y, w: [{"a": a, "b": b}, {"y": y, "w": w}],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_several_inputs_and_targets_are_one_batch(form):
    model, w = Both(), torch.randn(8, 3)
    expected = float(loss(model(X, X + 1), (Y, w)).detach())
    whole = Risk(model, loss, form(X, X + 1, Y, w))
    cuts = [slice(0, 3), slice(3, 8)]
    batches = Risk(model, loss, [form(*(t[cut] for t in (X, X + 1, Y, w))) for cut in cuts])
    assert (whole.num_summands, batches.num_summands) == (1, 2)
    for risk in (whole, batches):
        assert float(risk(risk.params)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("example", FORMS.values(), ids=FORMS)
def test_what_a_loader_collates_is_taken_with_and_without_the_loader(example):
    w = torch.randn(8, 3)
    examples = [example(X[i], X[i], Y[i], w[i]) for i in range(8)]
    model = Both()
    loader = DataLoader(examples, batch_size=3)
    for data in (loader, list(loader), iter(loader)):
        assert Risk(model, loss, data).num_summands == 3
    assert Risk(model, loss, next(iter(DataLoader(examples, batch_size=8)))).num_summands == 1


def test_two_batches_are_two_batches():
    model = nn.Linear(4, 3)
    halves = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    ragged = ((X[:5], Y[:5]), (X[5:], Y[5:]))
    for data in (halves, [list(h) for h in halves], list(loader), ragged, iter(halves)):
        assert Risk(model, MSE, data).num_summands == 2
    with pytest.raises(FunctionError, match="Two batches in a tuple"):
        Risk(model, MSE, tuple(halves))


class Pooled(nn.Module):
    """Of signals and images of any size."""

    def __init__(self, conv, dims):
        super().__init__()
        self.conv, self.dims = conv, dims

    def forward(self, x):
        return self.conv(x).tanh().mean(self.dims)


SIZES = {
    "signals": (nn.Conv1d(2, 3, 3), (2, 6), (2, 8)),
    "images": (nn.Conv2d(1, 3, 3), (1, 6, 6), (1, 8, 6)),
    "images in lists": (nn.Conv2d(1, 3, 3), (1, 6, 6), (1, 8, 8)),
}


@pytest.mark.parametrize("case", SIZES)
def test_two_batches_of_as_many_examples_may_have_other_sizes(case):
    conv, *sizes = SIZES[case]
    model = Pooled(conv, tuple(range(2, len(sizes[0]) + 1)))
    data = [(torch.randn(4, *size), torch.randn(4, 3)) for size in sizes]
    risk = Risk(model, MSE, [list(batch) for batch in data] if "lists" in case else data)
    assert risk.num_summands == 2
    expected = sum(float(MSE(model(x), y).detach()) for x, y in data) / 2
    assert float(risk(risk.params)) == pytest.approx(expected, rel=1e-5)


def ragged_pair():
    """Two batches of 5 and 3 signals of two lengths, in lists: of equal number, one batch."""
    return [[torch.randn(n, 2, length), torch.randn(n, 3)] for n, length in ((5, 6), (3, 8))]


def test_a_subset_of_two_unlike_batches_is_two_batches():
    data = ragged_pair()
    risk = Risk(Pooled(nn.Conv1d(2, 3, 3), 2), MSE, data)
    part = risk.subset([1, 2, 5, 7])
    assert part.num_summands == 2
    losses = [MSE(risk.model(x[i : i + 1]), y[i : i + 1]) for x, y in data for i in range(len(y))]
    expected = sum(float(losses[i].detach()) for i in (1, 2, 5, 7)) / 4
    assert float(part(part.params)) == pytest.approx(expected, rel=1e-5)


def test_weights_of_two_unlike_batches_leave_them_two():
    data = [(x[:3], y[:3]) for x, y in ragged_pair()]
    risk = Risk(Pooled(nn.Conv1d(2, 3, 3), 2), MSE, iter([list(batch) for batch in data]))
    weighted = risk.weighted(torch.tensor([0.0, 0.0, 0.0, 0.0, 6.0, 0.0]))
    expected = float(MSE(risk.model(data[1][0][1:2]), data[1][1][1:2]).detach())
    assert float(weighted(weighted.params)) == pytest.approx(expected, rel=1e-5)


def test_two_batches_that_are_taken_for_one_are_given_by_an_iterator():
    model = Pooled(nn.Conv1d(2, 3, 3), 2)
    data = [[x[:3], y[:3]] for x, y in ragged_pair()]
    with pytest.raises(FunctionError, match=r"unlike ones in a list.*give iter\(\[one, two\]\)"):
        Risk(model, MSE, data)
    assert Risk(model, MSE, iter(data)).num_summands == 2


# --------------------------------------------------------------------------------------------------
# Mistakes


@dataclass
class Fields:
    x: torch.Tensor
    y: torch.Tensor


DATA = {
    "a data set": (TensorDataset(X, Y), "DataLoader"),
    "triples": ([(X, X, Y)], r"\(\(x1, x2\), y\) for x1, x2, y in loader"),
    "inputs alone": (DataLoader(X, batch_size=4), r"\(x, x\) for x in loader"),
    "inputs in a list": (DataLoader(TensorDataset(X), batch_size=4), r"\(inputs, inputs\)"),
    "arrays": ((X.numpy(), Y.numpy()), "torch.as_tensor"),
    "objects": ([Fields(X, Y)], r"\(batch.x, batch.y\)"),
    "objects and targets": ([(Fields(X, Y), Y)], r"\(batch.x, batch.y\)"),
    "batches of arrays": ([(X.numpy(), Y.numpy())], "torch.as_tensor"),
}


@pytest.mark.parametrize(("data", "remedy"), DATA.values(), ids=DATA)
def test_the_remedy_is_one_for_the_form_that_was_given(data, remedy):
    with pytest.raises(DataError, match=rf"(?s)remedy: .*{remedy}"):
        Risk(nn.Linear(4, 3), MSE, data)


DTYPES = {
    "float64": ((X.double(), Y.double()), MSE, "inputs.to"),
    "uint8": (((X > 0).to(torch.uint8), Y), MSE, "inputs.to"),
    "integers": (((9 * X).long(), Y), MSE, "inputs.to"),
    "int32 classes": ((X, C.int()), nn.CrossEntropyLoss(), r"targets.long\(\)"),
    "float classes": ((X, C.float()), nn.CrossEntropyLoss(), r"targets.long\(\)"),
    "integer labels": ((X, (Y > 0).long()), nn.BCEWithLogitsLoss(), r"targets.float\(\)"),
}


@pytest.mark.parametrize(("data", "loss", "remedy"), DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("batched", [False, True])
def test_data_of_another_dtype_are_named(data, loss, remedy, batched):
    with pytest.raises(DtypeError, match=rf"(?s)remedy: .*{remedy}"):
        Risk(nn.Linear(4, 3), loss, [data, data] if batched else data)


ARGUMENTS = {
    "the class of the loss": (nn.Linear(4, 3), nn.MSELoss, (X, Y), r"loss = MSELoss\(\)"),
    "the class of the model": (nn.Linear, MSE, (X, Y), r"model = Linear\(...\)"),
    "loss first": (MSE, nn.Linear(4, 3), (X, Y), "Swap"),
    "function first": (lambda z, y: MSE(z, y), nn.Linear(4, 3), (X, Y), "Swap"),
    "data second": (nn.Linear(4, 3), (X, Y), MSE, r"Risk\(model, loss, data\)"),
    "data first": ((X, Y), MSE, nn.Linear(4, 3), r"Risk\(model, loss, data\)"),
    "no loss": (nn.Linear(4, 3), None, (X, Y), "a function"),
    "a lazy module": (nn.LazyLinear(3), MSE, (X, Y), r"model\(inputs\)"),
    "a module without memory": (nn.Linear(4, 3, device="meta"), MSE, (X, Y), "to_empty"),
}


@pytest.mark.parametrize(("model", "loss", "data", "remedy"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_wrong_arguments_are_refused_with_their_remedy(model, loss, data, remedy):
    with pytest.raises(ArgumentError, match=rf"(?s)remedy: .*{remedy}"):
        Risk(model, loss, data)


def test_a_model_that_fails_is_said_with_the_shapes_of_the_batch():
    with pytest.raises(HesseError, match=r"\(8, 4\) float32.*\(8, 3\) float32") as caught:
        Risk(nn.Linear(5, 3), MSE, (X, Y))
    assert isinstance(caught.value.__cause__, RuntimeError)
