# SPDX-License-Identifier: Apache-2.0
"""A dry run says what products take: counts that can be known are exact."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import hesse
from hesse.errors import FunctionError, HesseError

MODULE = "hesse.curvature.dry_run"
CURVATURES = ["hessian", "ggn", "fisher"]


def risk(batches=3):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5))
    data = [(torch.randn(40, 20), torch.randint(0, 5, (40,))) for _ in range(batches)]
    return hesse.Risk(model, nn.CrossEntropyLoss(), data)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_flops_and_bytes_are_those_of_the_operator(curvature):
    f = risk()
    run = hesse.plan(f, curvature=curvature)
    A = getattr(hesse, f"{curvature}_operator")(f)
    A.announce(1000)
    v = torch.ones(run.n)
    for _ in range(3):
        A @ v
    with FlopCounterMode(display=False) as counter:
        A @ v
    sizes = A.plan.held
    assert run.flops == counter.get_total_flops()
    assert (run.kept, run.batches) == (sizes.kept, sizes.total) == (3, 3)
    assert run.kept_bytes == pytest.approx(sizes.nbytes, rel=0.2)
    assert run.vector_bytes == v.nbytes
    assert run.peak_bytes >= run.kept_bytes + run.vector_bytes
    assert run.bytes(10) - run.bytes(0) == 10 * v.nbytes
    assert run.seconds(10) == pytest.approx(run.setup_seconds + 10 * run.product_seconds)


def test_seconds_are_of_all_batches(monkeypatch):
    def one_second(function, device):
        function()
        return 1.0

    monkeypatch.setattr(f"{MODULE}._timed", one_second)
    run = hesse.plan(risk(batches=5))
    assert (run.gradient_seconds, run.product_seconds, run.setup_seconds) == (5.0, 5.0, 0.0)
    assert run.gradients == 1.0


def test_little_memory_keeps_few_batches(monkeypatch):
    whole = hesse.plan(risk())
    monkeypatch.setattr(f"{MODULE}.kept_share", lambda device: whole.kept_bytes / 2)
    monkeypatch.setattr(f"{MODULE}.available_bytes", lambda device: 1000.0)
    run = hesse.plan(risk())
    assert run.kept == 1
    assert run.peak_bytes < whole.peak_bytes
    assert "residuals of 1 of 3" in repr(run)
    assert "memory_budget=" in repr(run)


def test_a_function_that_is_not_traced_has_a_plan():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g

    run = hesse.plan(lambda x: (Twice.apply(x) ** 3).sum(), torch.ones(50))
    assert (run.mode, run.flops) == ("retained-graph", None)
    assert run.peak_bytes > 0


def test_nothing_of_the_callers_changes():
    f = risk()
    before = [p.detach().clone() for p in f.model.parameters()]
    state = torch.random.get_rng_state()
    with torch.no_grad():
        hesse.plan(f)
    assert torch.equal(state, torch.random.get_rng_state())
    for old, p in zip(before, f.model.parameters(), strict=True):
        assert torch.equal(old, p)
        assert p.grad is None


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(HesseError, match=r"hesse\.plan\(f, x\)"):
        hesse.plan(risk(), curvature="hesian")
    with pytest.raises(FunctionError, match=r"hesse\.Risk"):
        hesse.plan(lambda x: (x**2).sum(), torch.ones(3), curvature="ggn")
    with pytest.raises(HesseError, match="the point"):
        hesse.plan(lambda x: (x**2).sum())
