# SPDX-License-Identifier: Apache-2.0
"""Limits, Ctrl-C, errors and checkpoints of `HessianFree`: a step is whole, or has not been."""

import copy
import os
import signal
import threading
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from hesse.curvature.operator import CurvatureOperator
from hesse.errors import ArgumentError, Status
from hesse.optimize import HessianFree
from hesse.optimize.hessian_free_state import ParameterState
from hesse.risk.risk import Risk


def classifier(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10)).eval()


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10)
    ).eval()


def examples(*shape, n=300):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, *shape, generator=generator), torch.arange(n) % 10


def batched(sizes):
    x, y = examples(20)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


CASES = {
    "whole": (classifier, examples(20)),
    "batches": (classifier, batched(100)),
    "uneven batches": (classifier, batched(128)),
    "convolutions": (convolutional, examples(1, 8, 8, n=60)),
}


def optimiser(model, data, **options):
    return HessianFree(Risk(model, nn.CrossEntropyLoss(), data), **options)


def assert_same(one, two):
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.some_cases(4)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("options", [{}, {"mode": "retained-graph"}, {"refresh_every": 3}])
def test_a_run_goes_on_from_its_file_to_the_same_bits(name, options, tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)  # save after every step
    make, data = CASES[name]
    whole = make()
    expected = optimiser(whole, data, **options)
    for _ in range(8):
        expected.step()
    for start, steps in enumerate((1, 2, 5)):
        part = make(start)  # the parameters come from the file
        optimizer = optimiser(part, data, checkpoint=tmp_path / "run", **options)
        for _ in range(steps):
            optimizer.step()
    assert_same(part, whole)
    assert optimizer.counts.nhev == expected.counts.nhev


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_from_its_state_to_the_same_bits(name):
    make, data = CASES[name]
    model = make()
    optimizer = optimiser(model, data)
    for _ in range(4):
        optimizer.step()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = make(1)
    resumed = optimiser(other, data)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(3):
        optimizer.step()
        resumed.step()
        assert_same(model, other)
    assert resumed.param_groups[0]["mode"] == "traced-split"


def test_the_state_of_another_optimiser_is_refused():
    make, data = next(iter(CASES.values()))
    model = make()
    optimizer = optimiser(model, data)
    for state in ({}, torch.optim.Adam(model.parameters()).state_dict()):
        with pytest.raises(ArgumentError, match=r"the state of a hesse\.HessianFree"):
            optimizer.load_state_dict(state)


@pytest.mark.slow
def test_steps_on_batches_of_other_shapes_go_on_to_the_same_bits():
    """A shape that the resumed run meets first was known to the other one."""
    x, y = examples(20)
    sizes = [100, 60, 100, 60, 100, 60]
    model = classifier()
    optimizer = optimiser(model, (x, y))
    for k, size in enumerate(sizes):
        if k == 3:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        optimizer.step(data=(x[:size], y[:size]))
    other = classifier(1)
    resumed = optimiser(other, (x, y))
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for size in sizes[3:]:
        resumed.step(data=(x[:size], y[:size]))
    assert_same(model, other)


def test_a_file_of_other_arguments_is_refused(tmp_path):
    make, data = CASES["whole"]
    optimizer = optimiser(make(), data, checkpoint=tmp_path / "run")
    optimizer.step()
    with pytest.raises(ArgumentError, match=r"(?s)hesse.HessianFree\(risk\).*lr = 0.5"):
        optimiser(make(), data, checkpoint=tmp_path / "run", lr=0.5)
    with pytest.raises(ArgumentError, match="checkpoint"):
        optimiser(convolutional(), examples(1, 8, 8), checkpoint=tmp_path / "run")


@pytest.mark.parametrize("limit", [2, 5, 17, 40])
def test_the_limit_of_products_is_kept(limit):
    make, data = CASES["whole"]
    model = make()
    optimizer = optimiser(model, data, max_products=limit)
    losses = [float(optimizer.step()) for _ in range(10)]
    assert optimizer.counts.nhev <= limit
    assert optimizer.status is Status.MAX_PRODUCTS
    assert all(b <= a for a, b in pairwise(losses))
    before = copy.deepcopy(model)
    assert float(optimizer.step()) == losses[-1]
    assert_same(model, before)


def test_the_limit_of_seconds_is_kept():
    make, data = CASES["whole"]
    optimizer = optimiser(make(), data, max_seconds=0.5)
    deadline = time.monotonic() + 20
    while optimizer.status is not Status.MAX_SECONDS:
        optimizer.step()
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_ctrl_c_ends_a_step_and_leaves_all_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 300), nn.Tanh(), nn.Linear(300, 10)).eval()
    data = torch.randn(3000, 100), torch.arange(3000) % 10
    optimizer = optimiser(model, data, max_cg_iterations=10_000)
    other = copy.deepcopy(model)
    same = optimiser(other, data, max_cg_iterations=10_000)
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(1.0, interrupt).start()

    def train():
        while True:
            optimizer.step()

    with pytest.raises(KeyboardInterrupt):
        train()
    assert time.monotonic() - sent[0] < 1.0
    assert optimizer.status is Status.INTERRUPTED
    optimizer.step()  # the step that was interrupted
    for _ in range(optimizer.param_groups[0]["steps"]):
        same.step()
    assert_same(model, other)


@pytest.mark.parametrize("product", [2, 5, 14])
def test_a_step_that_was_interrupted_is_taken_to_the_same_bits(product, monkeypatch):
    """At its second product the first step has factors, which must not serve as those of before."""
    model, data = classifier(), examples(20)
    other = copy.deepcopy(model)
    optimizer, same = optimiser(model, data), optimiser(other, data)
    taken, matvec = [], CurvatureOperator._matvec

    def interrupted(self, v):
        taken.append(None)
        if len(taken) == product:
            raise KeyboardInterrupt
        return matvec(self, v)

    def train():
        for _ in range(9):
            optimizer.step()

    with monkeypatch.context() as patch:
        patch.setattr(CurvatureOperator, "_matvec", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    for _ in range(optimizer.param_groups[0]["steps"]):
        same.step()
    for _ in range(2):
        optimizer.step()
        same.step()
        assert_same(model, other)


def test_ctrl_c_while_a_step_is_stored_waits_until_it_is(monkeypatch):
    model, data = classifier(), examples(20)
    other = copy.deepcopy(model)
    optimizer, same = optimiser(model, data), optimiser(other, data)
    optimizer.step()
    store = ParameterState.store_vector

    def interrupted(self, key, vector):
        os.kill(os.getpid(), signal.SIGINT)
        store(self, key, vector)

    with monkeypatch.context() as patch:
        patch.setattr(ParameterState, "store_vector", interrupted)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    assert optimizer.param_groups[0]["steps"] == 2
    optimizer.step()
    for _ in range(3):
        same.step()
    assert_same(model, other)


@pytest.mark.slow
def test_a_loss_that_raises_at_a_trial_point_is_stepped_back_from():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(-1, 1, 50)[:, None]

    def loss(outputs, targets):
        if float(outputs.detach().abs().max()) > 2.0:
            raise ValueError("outside of the support")
        return ((outputs - targets) ** 2).mean()

    optimizer = HessianFree(Risk(model, loss, (x, 1.9 * torch.sin(3 * x))))
    losses = [float(optimizer.step()) for _ in range(20)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_an_error_in_a_step_leaves_all_as_it_was():
    make, data = CASES["whole"]
    model, twin, fail = make(), make(), [False]

    def loss(outputs, targets):
        if fail[0]:
            raise TypeError("a fault")
        return nn.functional.cross_entropy(outputs, targets)

    optimizer = HessianFree(Risk(model, loss, data), mode="retained-graph")
    same = HessianFree(Risk(twin, loss, data), mode="retained-graph")
    for _ in range(2):
        optimizer.step()
        same.step()
    fail[0] = True
    with pytest.raises(TypeError, match="a fault"):
        optimizer.step()
    fail[0] = False
    assert_same(model, twin)
    for _ in range(2):
        optimizer.step()
        same.step()
    assert_same(model, twin)


def test_nothing_else_of_the_model_is_changed():
    model = convolutional()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state, hooks = torch.random.get_rng_state(), len(model[4]._forward_hooks)
    optimizer = optimiser(model, examples(1, 8, 8, n=60))
    for _ in range(2):
        optimizer.step()
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert len(model[4]._forward_hooks) == hooks
    assert not model.training
