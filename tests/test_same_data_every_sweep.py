# SPDX-License-Identifier: Apache-2.0
"""Data that differ from sweep to sweep raise; another order or padding is allowed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from hesse.curvature import ggn_operator, hessian_operator
from hesse.data.same_every_sweep import SweepChecksum
from hesse.errors import DataError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

EXAMPLES = 22
X, Y = torch.randn(EXAMPLES, 2, 3).double(), torch.randn(EXAMPLES, 2).double()
SEQUENCES = [torch.arange(2, 4 + n % 5) + n for n in range(EXAMPLES)]


class Changed(Dataset):
    """Examples that are changed whenever they are read."""

    def __init__(self, change):
        self.change = change

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, i):
        return self.change(X[i], Y[i])


class Redrawn:
    """An iterable that draws new batches in every sweep."""

    def __iter__(self):
        for _ in range(3):
            chosen = torch.randint(0, EXAMPLES, (5,))
            yield X[chosen], Y[chosen]


def noisy(x, y):
    return x + 1e-3 * torch.randn(x.shape), y


def flipped(x, y):
    return x.flip(1) if torch.rand(()) < 0.5 else x, y


def relabelled(x, y):
    return x, y if torch.rand(()) < 0.5 else y.flip(0)


def model():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()


CHANGING = {
    "noise": lambda: DataLoader(Changed(noisy), batch_size=5),
    "flips": lambda: DataLoader(Changed(flipped), batch_size=5),
    "labels": lambda: DataLoader(Changed(relabelled), batch_size=5, shuffle=True),
    "one batch": lambda: DataLoader(Changed(noisy), batch_size=EXAMPLES),
    "replacement": lambda: DataLoader(
        TensorDataset(X, Y), 5, sampler=RandomSampler(X, replacement=True)
    ),
    "fresh": Redrawn,
}


@pytest.mark.some_cases(20)
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("budget", [None, "1 MB", "30 kB"])
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("data", CHANGING.values(), ids=CHANGING)
def test_data_that_change_in_the_next_sweep_raise(data, make, budget):
    risk = Risk(model(), nn.MSELoss(), data())
    v = torch.ones(sum(p.numel() for p in risk.params.values())).double()
    with pytest.raises(DataError, match=r"(?s)the same data.*batch\['\w+'\].*list\(loader\)"):
        make(risk, risk.params, memory_budget=budget) @ v


def test_a_list_of_changing_batches_is_the_remedy():
    risk = Risk(model(), nn.MSELoss(), list(CHANGING["noise"]()))
    H = hessian_operator(risk, risk.params)
    v = torch.ones(H.shape[0]).double()
    assert norm(H @ v - H @ v) <= 1e-14


@pytest.mark.parametrize("size", [1, 5, EXAMPLES])
def test_a_shuffled_loader_gives_the_same_products(size):
    loader = DataLoader(
        TensorDataset(X, Y), batch_size=size, shuffle=True
    )  # ragged: 22 = 4 * 5 + 2
    net = model()
    risk, whole = Risk(net, nn.MSELoss(), loader), Risk(net, nn.MSELoss(), (X, Y))
    H, expected = hessian_operator(risk, risk.params), hessian_operator(whole, whole.params)
    v = torch.ones(H.shape[0]).double()
    for _ in range(3):
        assert norm(H @ v - expected @ v) <= 1e-12 * norm(expected @ v)


def padded(sequences):
    """Token numbers padded by 99 on the right, their mask, and labels of -100 in these places."""
    tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=99)
    mask = tokens != 99
    return {"tokens": tokens, "mask": mask, "labels": tokens.masked_fill(~mask, -100)}


def swept(loader):
    checksum = SweepChecksum()
    for batch in loader:
        checksum.add(batch)
    return checksum


def test_padding_to_the_longest_sequence_of_a_shuffled_batch_is_ignored():
    loader = DataLoader(SEQUENCES, batch_size=4, shuffle=True, collate_fn=padded)
    sweeps = [swept(loader) for _ in range(6)]
    widths = {sum(batch["tokens"].numel() for batch in loader) for _ in range(6)}
    assert len(widths) > 1  # which is what the test is about
    assert not any(sweep.difference(sweeps[0]) for sweep in sweeps)


def test_a_changed_token_is_found_under_any_padding():
    loader = DataLoader(SEQUENCES, batch_size=4, shuffle=True, collate_fn=padded)
    other = [sequence.clone() for sequence in SEQUENCES]
    other[7][1] += 1
    changed = DataLoader(other, batch_size=4, shuffle=True, collate_fn=padded)
    assert swept(changed).difference(swept(loader)) == "['tokens']"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64, torch.bool])
def test_every_dtype_and_shape_has_a_checksum(dtype):
    x = torch.randn(6, 4, 3).round().to(dtype)
    checksums = [SweepChecksum() for _ in range(4)]
    for checksum, batch in zip(checksums, [x, x.flip(0), x.flip(1), x.flip(2)], strict=True):
        checksum.add([batch, x[0, 0, 0], x[:0]])
    assert [checksum.difference(checksums[0]) is None for checksum in checksums] == [
        True,
        True,
        False,
        False,
    ]


def test_sums_that_cancel_are_compared_relative_to_their_terms():
    x = torch.linspace(-1, 1, 11).double()
    one, two = SweepChecksum(), SweepChecksum()
    one.add(x)
    two.add(x.flip(0)[:4])
    two.add(x.flip(0)[4:])
    assert one.difference(two) is None


# --------------------------------------------------------------------------------------------------
# Which examples go together


class Paired:
    """Batches of the same inputs and targets, put together anew in every sweep."""

    def __init__(self, pair):
        self.pair, self.sweeps = pair, 0

    def __iter__(self):
        self.sweeps += 1
        inputs, targets = self.pair(self.sweeps)
        order = torch.randperm(EXAMPLES)  # which may differ
        for chosen in order.split(5):
            yield tuple(x[chosen] for x in inputs), targets[chosen]


OTHER = torch.randn(EXAMPLES, 2, 3).double()
PAIRINGS = {
    "rolled targets": lambda sweep: ((X, OTHER), Y.roll(sweep, 0)),
    "rolled integers": lambda sweep: ((X, OTHER), Y.sign().roll(sweep, 0)),
    "two targets exchanged": lambda sweep: (
        (X, OTHER), Y if sweep < 3 else Y[[1, 0, *range(2, EXAMPLES)]],
    ),
    "other second inputs": lambda sweep: ((X, OTHER.roll(sweep, 0)), Y),
    "large offset": lambda sweep: ((1e4 + X, OTHER), Y.roll(sweep, 0)),
}  # fmt: skip


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model()

    def forward(self, x, other):
        return self.model(torch.sin(x) + other)


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("pair", PAIRINGS.values(), ids=PAIRINGS)
def test_examples_that_go_together_with_others_are_noticed(pair, make):
    def products():
        risk = Risk(Sum(), nn.MSELoss(), Paired(pair))
        G = make(risk, risk.params)
        for _ in range(3):
            G @ torch.ones(G.shape[0]).double()

    with pytest.raises(DataError, match=r"(?s)meet other batch\['targets'\].*list\(loader\)"):
        products()


def test_the_same_pairs_in_any_order_are_the_same():
    risk = Risk(Sum(), nn.MSELoss(), Paired(lambda _: ((X, OTHER), Y)))
    H = hessian_operator(risk, risk.params)
    v = torch.ones(H.shape[0]).double()
    assert norm(H @ v - H @ v) <= 1e-12 * norm(H @ v)


def test_padded_sequences_with_labels_are_the_same_in_any_order():
    def collate(examples):
        return padded([sequence for sequence, _ in examples]), torch.stack([y for _, y in examples])

    examples = list(zip(SEQUENCES, Y, strict=True))
    loader = DataLoader(examples, batch_size=4, shuffle=True, collate_fn=collate)
    sweeps = [swept(loader) for _ in range(6)]
    assert not any(sweep.difference(sweeps[0]) for sweep in sweeps)
