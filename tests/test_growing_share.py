# SPDX-License-Identifier: Apache-2.0
"""`Growing(risk, share)`: steps look at some examples first, and at all of them in the end."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, DataError
from hesse.optimize import Growing, HessianFree
from hesse.risk.risk import Risk

N = 120


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def examples():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, dtype=torch.float64, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1)


def batched(size):
    return list(zip(*(part.split(size) for part in examples()), strict=True))


def optimiser(model, data=None, share=1.0, **options):
    risk = Risk(model, nn.CrossEntropyLoss(), examples() if data is None else data, 1e-3)
    return HessianFree(Growing(risk, share), **options)


def counted(model):
    """How many examples each call of the model is given."""
    numbers = []
    model.register_forward_pre_hook(lambda _, inputs: numbers.append(len(inputs[0])))
    return numbers


def trained(optimizer, steps):
    """The shares of the steps, and the risks of all examples after them."""
    shares, risks = [], []
    for _ in range(steps):
        shares.append(optimizer.param_groups[0]["share"])
        optimizer.step()
        with torch.no_grad():
            now = dict(optimizer.risk.model.named_parameters())  # risk.params is the start
            risks.append(float(optimizer.risk(now)))
    return shares, risks


@pytest.mark.slow
def test_the_share_grows_to_all_examples_and_their_risk_never_rises():
    optimizer = optimiser(network(), share=0.1)
    shares, risks = trained(optimizer, 16)
    assert sorted(set(shares)) == [0.1, 0.3, 1.0]
    assert shares == sorted(shares)
    assert all(b <= a for a, b in pairwise(risks))
    _, of_all = trained(optimiser(network()), 16)
    assert risks[-1] < 1.1 * of_all[-1]


def test_a_step_looks_at_its_share_of_each_batch():
    model = network()
    optimizer = optimiser(model, batched(50), share=0.3, mode="retained-graph")
    optimizer.step()  # which tries the model on parts of a batch, too
    numbers = counted(model)
    optimizer.step()
    assert set(numbers) == {15, 6, 50, 20}
    assert numbers.count(50) == 2  # the value of all examples after the step
    assert numbers.count(15) > 6


def test_a_step_that_raises_the_risk_of_all_examples_is_not_taken():
    """Most targets are one number, those of the part another."""
    x = torch.ones(100, 1, dtype=torch.float64)
    y = torch.zeros(100, 1, dtype=torch.float64)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    y[order[:10]] = 100.0
    model = nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.zero_(), model.bias.fill_(10.0)
    before = copy.deepcopy(model.state_dict())
    optimizer = HessianFree(Growing(Risk(model, nn.MSELoss(), (x, y)), 0.1))
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert optimizer.param_groups[0]["share"] == 0.3
    for _ in range(10):
        optimizer.step()
    assert optimizer.param_groups[0]["share"] == 1.0
    torch.testing.assert_close(model(x[:1])[0, 0], y.mean(), rtol=1e-4, atol=0.0)


def test_a_share_without_a_target_that_counts_grows():
    x, y = examples()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    y[order[: N // 5]] = -100  # of the first tenth all
    optimizer = optimiser(network(), (x, y), share=0.1)
    _, risks = trained(optimizer, 6)
    assert risks[-1] < risks[0]
    y[order[:-1]] = -100
    assert optimiser(network(), (x, y), share=0.1).step() > 0.0


def test_a_share_of_one_changes_nothing():
    one, two = network(), network()
    optimizer = optimiser(one, share=1.0)
    trained(optimizer, 4)
    trained(HessianFree(Risk(two, nn.CrossEntropyLoss(), examples(), 1e-3)), 4)
    assert all(map(torch.equal, one.parameters(), two.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 12])  # of a part, and of all examples
def test_a_run_goes_on_to_the_same_bits(steps, tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)  # save after every step
    model, options = network(), {"share": 0.1, "max_cg_iterations": 4}
    expected = optimiser(model, **options)
    trained(expected, steps)
    saved = copy.deepcopy((model.state_dict(), expected.state_dict()))
    first = network(1)
    trained(optimiser(first, checkpoint=tmp_path / "run", **options), 1)
    from_file, from_state = network(2), network(3)
    resumed = optimiser(from_file, checkpoint=tmp_path / "run", **options)
    model_of_file = network(1)  # of an uninterrupted run
    whole = optimiser(model_of_file, **options)
    trained(whole, 1 + steps)
    trained(resumed, steps)
    assert all(map(torch.equal, from_file.parameters(), model_of_file.parameters()))
    assert resumed.counts == whole.counts
    other = optimiser(from_state, **options)
    from_state.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    trained(expected, 3), trained(other, 3)
    assert all(map(torch.equal, from_state.parameters(), model.parameters()))


def test_data_for_a_step_are_taken_whole():
    model = network()
    optimizer = optimiser(model, share=0.1, mode="retained-graph")
    x, y = examples()
    numbers = counted(model)
    optimizer.step(data=(x[:70], y[:70]))
    assert max(numbers) == 70
    assert numbers.count(70) > 6
    assert optimizer.param_groups[0]["share"] == 0.1


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, "half", float("nan")])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ArgumentError, match="0 < share <= 1"):
        optimiser(network(), share=share)


def test_losses_that_add_up_and_parameters_are_refused():
    model = network()
    risk = Risk(model, nn.CrossEntropyLoss(reduction="sum"), examples())
    for given, got in ((risk, "a loss that adds up"), (model.parameters(), "generator")):
        with pytest.raises(ArgumentError, match=rf"hesse\.Growing\((.|\n)*{got}"):
            Growing(given, share=0.5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_goes_on_as_the_optimiser_does(copied):
    model = network()
    optimizer = optimiser(model, share=0.1)
    trained(optimizer, 2)
    other = copied(optimizer)
    trained(optimizer, 2), trained(other, 2)
    assert all(map(torch.equal, other.risk.model.parameters(), model.parameters()))
    assert other.param_groups[0]["share"] == optimizer.param_groups[0]["share"]


def test_batches_that_do_not_count_examples_are_refused_and_nothing_is_lost():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, a, b):
            return a.sum() * self.weight + b.mean()

    model = Pair()
    inputs = {"a": torch.ones(3).double(), "b": torch.ones(4).double()}
    optimizer = HessianFree(Growing(Risk(model, nn.MSELoss(), (inputs, torch.zeros(2).double()))))
    with pytest.raises(DataError, match="first dimension counts the examples"):
        optimizer.step()
    assert torch.equal(model.weight, torch.ones(2).double())
