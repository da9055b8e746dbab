# SPDX-License-Identifier: Apache-2.0
"""A batch weighs as its loss averages: known losses, weights of the user, tolerances."""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import DataError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm
from tests.averaged_risks import CLASS_WEIGHTS, X, callable_of, parameters

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


@pytest.mark.some_cases(13)
@pytest.mark.fast_cases(9)
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


class InTurns:
    """A loader that puts the examples into batches in one order, and next time in another."""

    def __init__(self, data, orders):
        self._data, self._orders = data, itertools.cycle(orders)

    def __iter__(self):
        for places in torch.tensor(next(self._orders)).split(2):
            yield tuple(part[places] for part in self._data)


@pytest.mark.parametrize("mode", ["reverse-over-reverse", "retained-graph", "traced-split"])
def test_a_batch_of_which_the_loss_sees_nothing_comes_in_some_orders_only(mode):
    y = torch.tensor([0, 1, -100, -100, 2, 1])
    data = InTurns((INPUTS[:6], y), [[0, 1, 2, 3, 4, 5], [2, 1, 3, 0, 4, 5]])
    alone = Risk(LogSoftmax(), nn.NLLLoss(), (INPUTS[:6], y))
    x, v = alone.params, torch.arange(15.0).double()
    expected = hessian_operator(alone, x)
    H = hessian_operator(Risk(alone.model, nn.NLLLoss(), data), x, mode=mode)
    for _ in range(4):
        torch.testing.assert_close(H @ v, expected @ v)
    torch.testing.assert_close(H.value, expected.value)


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


class Next(nn.Embedding):
    """A language model that shifts its labels by one itself, as those of transformers do."""

    def forward(self, input_ids, labels):
        z = super().forward(input_ids)[:, :-1]
        return nn.functional.cross_entropy(z.flatten(0, 1), labels[:, 1:].flatten())


def test_the_line_to_write_knows_of_labels_that_are_shifted():
    tokens, model = torch.randint(0, 5, (4, 6)), Next(5, 5)
    labels = tokens.where(torch.arange(6) >= torch.tensor([0, 2, 0, 3])[:, None], -100)
    parts = zip(tokens.split(2), labels.split(2), strict=True)
    batches = [{"input_ids": ids, "labels": part} for ids, part in parts]
    with pytest.raises(DataError, match=r"\[:, 1:\] if it predicts the next token"):
        Risk(model, lambda z, _: z, batches)
    risk = Risk(
        model, lambda z, _: z, batches, weight=lambda _, t: (t["labels"][:, 1:] != -100).sum()
    )
    torch.testing.assert_close(risk(risk.params), model(tokens, labels))


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
