# SPDX-License-Identifier: Apache-2.0
"""What products hold on to, and `memory_budget=`, counted by a meter that sees every tensor."""

import gc
from itertools import pairwise

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator
from hesse.curvature.hessian import HessianDefinition
from hesse.curvature.operator import CurvatureOperator
from hesse.engine import prepare
from hesse.engine.options import ProductOptions
from hesse.errors import ArgumentError, FallbackWarning
from hesse.memory.peak import PeakMemory
from hesse.memory.sizes import parse_bytes
from hesse.risk.risk import Risk
from hesse.testing import all_problems
from hesse.tracing.program import run
from hesse.vectors.inner_products import norm
from hesse.vectors.space import Space

PROBLEMS = {problem.name: problem for problem in all_problems()}


def convolutions():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32 * 64, 10))


def autoencoder():
    widths = [64, 48, 24, 6, 24, 48, 64]
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))


def risk_of(name, rows=20_000):
    torch.manual_seed(0)
    if name == "convolutions":
        return Risk(
            convolutions(),
            nn.CrossEntropyLoss(),
            (torch.randn(64, 3, 32, 32), torch.arange(64) % 10),
        )
    inputs = torch.rand(rows, 64)
    return Risk(autoencoder(), nn.MSELoss(), (inputs, inputs))


def gradient_peak(risk):
    parameters = list(risk.model.parameters())
    with PeakMemory() as memory:
        batch = risk.data.first
        value = risk.loss(risk.model(batch.inputs), batch.targets)
        torch.autograd.grad(value, parameters)
    return memory.peak


def direction(risk):
    return Space.of(risk.params).gaussian(torch.Generator().manual_seed(0))


@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_product_in_low_memory_is_the_same(name):
    problem = PROBLEMS[name]
    space = Space.of(problem.x)
    unlimited = float("inf"), float("inf")
    options = ProductOptions("traced-split", kept_bytes=unlimited, low_memory=True)
    H = CurvatureOperator(HessianDefinition(), problem.f, problem.x, options)
    v = problem.direction(0)
    expected = hessian_operator(problem.f, problem.x, mode="retained-graph") @ v
    expected = expected if isinstance(expected, torch.Tensor) else space.flatten(expected)
    flat = v if isinstance(v, torch.Tensor) and v.shape == (space.n,) else space.flatten(v)
    assert norm(H @ flat - expected.reshape(-1)) <= 1e-10 * norm(expected.reshape(-1))


@pytest.mark.parametrize("name", ["convolutions", "autoencoder"])
def test_repeated_products_take_twice_the_memory_of_a_gradient(name):
    risk = risk_of(name)
    v, gradient = direction(risk), gradient_peak(risk)
    with PeakMemory() as memory:
        H = hessian_operator(risk, risk.params, mode="traced-split")
        H @ v
        H @ v
        memory.peak = memory.current
        H @ v
    assert memory.peak <= 2.0 * gradient


def test_nothing_is_left_of_a_recording_but_the_residuals():
    risk = risk_of("convolutions")
    v = direction(risk)
    hessian_operator(risk_of("autoencoder"), risk_of("autoencoder").params) @ direction(
        risk_of("autoencoder")
    )  # imports what torch imports late
    gc.disable()
    try:
        with PeakMemory() as memory:
            H = hessian_operator(risk, risk.params, mode="traced-split")
            H @ v
            H @ v
        held = memory.current
    finally:
        gc.enable()
    assert held <= H.plan.residual_bytes + 4 * v.nbytes + 10_000


@pytest.mark.some_cases(4)
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("gradients", [4.0, 2.0, 1.25])
@pytest.mark.parametrize("name", ["convolutions", "autoencoder"])
def test_a_budget_is_kept(name, gradients, make):
    risk = risk_of(name, rows=8_000)
    v, budget = direction(risk), int(gradients * gradient_peak(risk))
    reference = make(risk, risk.params) @ v
    with PeakMemory() as memory:
        H = make(risk, risk.params, memory_budget=budget)
        for _ in range(2):
            product = H @ v
    assert memory.peak <= 1.05 * budget
    assert norm(product - reference) <= 1e-4 * norm(reference)


@pytest.mark.slow
def test_residuals_are_kept_for_as_many_batches_as_fit():
    risk = risk_of("autoencoder")
    inputs = risk.data.first.inputs
    several = risk.on([(part, part) for part in inputs.split(1000)])
    v = direction(risk)
    seconds = {}
    for budget in ("20MB", "1GB"):
        H = hessian_operator(several, several.params, memory_budget=budget)
        H @ v
        counted = []
        several.model.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        with PeakMemory() as memory:
            H @ v
        seconds[budget] = memory.peak
        assert not counted  # programs, not the model
    assert seconds["1GB"] < seconds["20MB"]  # nothing but directions


@pytest.mark.parametrize(
    ("text", "size"),
    [("1e-3 GB", 10**6), ("1e+3 MB", 10**9), ("1E3", 1000), ("2.5e1KiB", 25600), (3e9, 3 * 10**9)],
)
def test_a_budget_is_a_number_as_python_writes_it(text, size):
    assert parse_bytes(text) == size


@pytest.mark.slow
@pytest.mark.parametrize("vectors", [12, 20, 30])
def test_a_budget_is_kept_where_what_is_kept_depends_on_the_size(vectors):
    """Of 62 rows other things are computed again than of 2,000."""
    torch.manual_seed(0)
    widths = [64, 600, 600, 64]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    inputs = torch.rand(2000, 64)
    risk = Risk(nn.Sequential(*layers), nn.MSELoss(), (inputs, inputs))
    v = direction(risk)
    budget = vectors * v.nbytes
    with PeakMemory() as memory:
        H = hessian_operator(risk, risk.params, memory_budget=budget)
        for _ in range(3):
            H @ v
    assert memory.peak <= 1.05 * budget


@pytest.mark.parametrize("mode", ["traced-split", "retained-graph", "reverse-over-reverse"])
def test_a_value_holds_the_memory_of_a_number(mode):
    """torch's `mse_loss` gives its mean in the memory of all the squares."""
    risk = risk_of("autoencoder", rows=100)
    for make in (hessian_operator, ggn_operator):
        mode_ = "auto" if make is ggn_operator and mode == "reverse-over-reverse" else mode
        A = make(risk, risk.params, mode=mode_)
        A @ direction(risk)
        assert A.value.untyped_storage().nbytes() == A.value.itemsize
        assert A.at(risk.params).value.untyped_storage().nbytes() == A.value.itemsize


def test_what_is_held_after_a_product_is_known():
    risk = risk_of("autoencoder", rows=1000)
    v = direction(risk)
    with PeakMemory() as memory:
        H = hessian_operator(risk, risk.params, mode="traced-split")
        for _ in range(3):
            H @ v
    assert memory.current <= H.plan.residual_bytes + v.nbytes + 1000


@pytest.mark.parametrize("budget", [0, -5, "many", "4XB", "GB", "1e-3", "1e", "1e999", "1.2.3 GB"])
def test_a_budget_that_is_none(budget):
    risk = risk_of("convolutions")
    with pytest.raises(ArgumentError, match="memory_budget as a number of bytes or a text"):
        hessian_operator(risk, risk.params, memory_budget=budget)


def test_a_budget_that_is_too_small_says_what_is_needed():
    risk = risk_of("convolutions")
    with pytest.raises(ArgumentError, match=r"a memory budget of at least .* bytes"):
        hessian_operator(risk, risk.params, memory_budget="100 kB")


@pytest.mark.slow
def test_a_hundred_updates_record_once_and_take_no_more_memory():
    risk = risk_of("convolutions").on((torch.randn(8, 3, 32, 32), torch.arange(8) % 10))
    v, held = direction(risk), []
    with PeakMemory() as memory:
        H = hessian_operator(risk, risk.params, mode="traced-split")
        for step in range(100):
            H = H.at({name: leaf * (1.0 - 1e-3 * step) for name, leaf in risk.params.items()})
            H @ v
            held.append(memory.current)
    (preparation,) = risk.programs.values()
    assert preparation.validator.num_traces == 1
    assert H.plan.points == 100
    assert held[-1] <= held[10]


def test_a_plain_function_either_fits_or_says_what_it_needs():
    def f(x):
        return (torch.sin(x) * torch.cos(3 * x)).sum() + (x**4).sum()

    x, v = torch.linspace(-1, 1, 10_000), torch.ones(10_000)
    H = hessian_operator(f, x, memory_budget="10 MB")
    assert norm(H @ v - hessian_operator(f, x) @ v) <= 1e-5 * norm(H @ v)
    with pytest.raises(ArgumentError, match="where there are no batches to be cut"):
        hessian_operator(f, x, memory_budget="100 kB")


class Squares(nn.Module):
    def __init__(self, square):
        super().__init__()
        self.linear, self.square = nn.Linear(20, 3), square

    def forward(self, x):
        return self.square(self.linear(x))


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_a_model_that_cannot_be_recorded_keeps_to_its_budget_by_graphs(square, make):
    torch.manual_seed(0)
    data = torch.randn(4000, 20), torch.arange(4000) % 3
    risk = Risk(Squares(square), nn.CrossEntropyLoss(), data)
    with pytest.warns(FallbackWarning, match="using 'retained-graph' within the budget because"):
        H = make(risk, risk.params, memory_budget="200 kB")
    with PeakMemory() as memory:
        product = H @ direction(risk)
    assert memory.peak <= 210_000
    reference = make(risk, risk.params) @ direction(risk)
    assert norm(product - reference) <= 1e-5 * norm(reference)


@pytest.mark.slow
def test_programs_recorded_within_a_budget_are_shared():
    risk = risk_of("autoencoder", rows=8_000)
    v, budget = direction(risk), int(2.0 * gradient_peak(risk))
    for _ in range(2):
        H = hessian_operator(risk, risk.params, memory_budget=budget)
        H @ v
        assert [p.validator.num_traces for p in risk.programs.values()] == [1]


@pytest.mark.slow
def test_more_residuals_are_kept_once_the_checks_are_over(monkeypatch):
    risk = risk_of("autoencoder", rows=8_000)
    v, runs = direction(risk), []
    H = hessian_operator(risk, risk.params, memory_budget=int(1.3 * gradient_peak(risk)))
    monkeypatch.setattr(prepare, "run", lambda *given: runs.append(1) or run(*given))
    counts = []
    for _ in range(4):
        runs.clear()
        H @ v
        counts.append(len(runs))
    assert counts[0] > counts[1] > counts[2] == counts[3]  # fewer point programs
