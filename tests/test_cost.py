# SPDX-License-Identifier: Apache-2.0
"""Costs are contracts: floating-point operations and memory, the same on every machine."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hesse.curvature import fisher_operator, ggn_operator, hessian_operator, hvp
from hesse.optimize import HessianFree
from hesse.risk.risk import Risk
from hesse.testing import PeakMemory, problems
from hesse.vectors.inner_products import norm


def flops(run):
    """Operations in matrix products, the backward pass included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def autoencoder():
    """A risk on one batch, a direction, and what a gradient of it costs."""
    torch.manual_seed(0)
    layers = [60, 40, 20, 10, 20, 40, 60]
    net = nn.Sequential()
    for inputs, outputs in pairwise(layers):
        net.extend([nn.Linear(inputs, outputs), nn.Tanh()])
    images = torch.rand(50, 60)
    risk = Risk(net[:-1], nn.MSELoss(), (images, images))
    params = [parameter for parameter in net.parameters() if parameter.requires_grad]
    gradient = flops(lambda: torch.autograd.grad(nn.MSELoss()(net[:-1](images), images), params))
    direction = hessian_operator(risk, risk.params).domain.gaussian()
    return risk, direction, gradient


@pytest.fixture(scope="module")
def transformer():
    """The same for two layers of attention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    tokens = torch.rand(4, 8, 16)
    risk = Risk(net, nn.MSELoss(), (tokens, tokens))
    with sdpa_kernel(SDPBackend.MATH):  # torch counts the fused kernels in another way
        gradient = flops(
            lambda: torch.autograd.grad(nn.MSELoss()(net(tokens), tokens), list(net.parameters()))
        )
    return risk, hessian_operator(risk, risk.params).domain.gaussian(), gradient


PREPARED = ["auto", "traced-split", "retained-graph"]


@pytest.mark.parametrize("mode", PREPARED)
def test_a_prepared_product_costs_two_gradients(autoencoder, mode):
    risk, v, gradient = autoencoder
    H = hessian_operator(risk, risk.params, mode=mode)
    H @ v
    assert mode in ("auto", H.mode)
    assert flops(lambda: H @ v) <= 2.05 * gradient


@pytest.mark.parametrize("mode", PREPARED)
def test_a_gauss_newton_product_costs_four_thirds_of_a_gradient(autoencoder, mode):
    risk, v, gradient = autoencoder
    G = ggn_operator(risk, risk.params, mode=mode)
    G @ v
    assert flops(lambda: G @ v) <= 1.37 * gradient
    assert flops(lambda: G.curvature(v)) <= 0.70 * gradient


@pytest.mark.parametrize("mode", PREPARED)
def test_value_and_gradient_are_free_with_a_product(autoencoder, mode):
    risk, v, _ = autoencoder
    H = hessian_operator(risk, risk.params, mode=mode)
    H @ v
    assert flops(lambda: (H.value, H.gradient)) == 0


# Forward passes' worth, of which a gradient is 3: the docstring of hvp says 9, 9, 8, 6, 6.
@pytest.mark.parametrize(
    ("mode", "units"),
    [
        ("reverse-over-reverse", 9),
        ("forward-over-reverse", 9),
        ("reverse-over-forward", 8),
        ("finite-difference", 6),
        ("forward-difference", 6),
    ],
)
def test_a_one_shot_product_costs_what_its_docstring_says(autoencoder, mode, units):
    risk, v, gradient = autoencoder
    cost = flops(lambda: hvp(risk, risk.params, v, mode))
    assert cost <= 1.05 * units / 3 * gradient


@pytest.mark.some_cases(4)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("mode", PREPARED)
@pytest.mark.parametrize(("make", "most"), [(hessian_operator, 2.05), (ggn_operator, 1.37)])
def test_products_of_a_transformer_cost_as_many_gradients(transformer, make, most, mode):
    risk, v, gradient = transformer
    A = make(risk, risk.params, mode=mode)
    A @ v
    assert flops(lambda: A @ v) <= most * gradient


def test_a_one_shot_product_of_a_transformer_takes_less_than_three_gradients(transformer):
    risk, v, gradient = transformer
    assert flops(lambda: hvp(risk, risk.params, v, "reverse-over-forward")) <= 2.7 * gradient


def test_building_an_operator_costs_nothing(autoencoder):
    risk, _, _ = autoencoder
    with FlopCounterMode(display=False) as counter:
        2.0 * hessian_operator(risk, risk.params) - ggn_operator(risk, risk.params)
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("make", [hessian_operator, ggn_operator, fisher_operator])
def test_gradient_before_product_is_one_gradient_by_the_graph_of_both(autoencoder, make):
    risk, v, gradient = autoencoder
    A = make(risk, risk.params, mode="retained-graph").at(risk.params)
    assert flops(lambda: (A.value, A.gradient)) <= 1.05 * gradient
    most = 2.05 if make is hessian_operator else 1.37
    assert flops(lambda: A @ v) <= most * gradient


def test_gradient_before_product_is_one_gradient_on_several_batches(autoencoder):
    risk, _, gradient = autoencoder
    inputs, targets = risk.data.first.inputs, risk.data.first.targets
    batches = [(inputs[i::3], targets[i::3]) for i in range(3)]
    H = hessian_operator(risk.on(batches), risk.params)
    assert flops(lambda: (H.gradient, H.value)) <= 1.05 * gradient


def test_a_step_without_cg_costs_three_gradients_and_a_third():
    """A gradient, a product, half of another, a value; the next data need no gradient of these."""
    torch.manual_seed(0)
    widths = [60, 40, 20, 40, 60]
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    images = torch.rand(50, 60)
    parameters = list(net.parameters())
    gradient = flops(lambda: torch.autograd.grad(nn.MSELoss()(net(images), images), parameters))
    optimizer = HessianFree(
        Risk(net, nn.MSELoss(), (images, images)), max_cg_iterations=0, preconditioner="none",
        mode="retained-graph",
    )  # fmt: skip
    for seed in range(2):
        batch = torch.rand(50, 60, generator=torch.Generator().manual_seed(seed))
        cost = flops(lambda batch=batch: optimizer.step(data=(batch, batch)))
    assert cost <= 3.4 * gradient


# --------------------------------------------------------------------------------------------------
# Memory, in vectors of length n


# Measured: 9, 19, 16, 8 and 8 vectors, of which f itself makes six; one more is allowed.
# One of them is a copy of x, to which f may write.
@pytest.mark.parametrize(
    ("mode", "vectors"),
    [
        ("reverse-over-reverse", 11),
        ("forward-over-reverse", 21),
        ("reverse-over-forward", 18),
        ("finite-difference", 10),
        ("forward-difference", 10),
    ],
)
def test_the_memory_of_a_product_is_a_few_vectors(mode, vectors):
    problem = problems.rosenbrock(10_000)
    v = problem.direction(0)
    hvp(problem.f, problem.x, v, mode)
    with PeakMemory() as memory:
        product = hvp(problem.f, problem.x, v, mode)
    assert memory.peak <= vectors * v.nbytes
    assert memory.current <= 1.01 * product.nbytes  # nothing else stays


def test_a_released_operator_releases_its_graph():
    problem = problems.rosenbrock(10_000)
    v = problem.direction(0)
    with PeakMemory() as memory:
        H = hessian_operator(problem.f, problem.x)
        H @ v
        assert memory.current > 2 * v.nbytes
        del H
        assert memory.current == 0


@pytest.mark.slow
def test_ten_million_variables():
    """3 s and 0.8 GB; the closed form knows the answer."""
    problem = problems.rosenbrock(10**7)
    v = problem.direction(0)
    with PeakMemory() as memory:
        product = hvp(problem.f, problem.x, v)
    assert memory.peak <= 11 * v.nbytes
    exact = problem.hessian_product(problem.x, v)
    assert norm(product - exact) <= 1e-14 * norm(exact)


def test_several_batches_need_the_memory_of_one():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 1))
    inputs, targets = torch.randn(1000, 20), torch.randn(1000, 1)
    whole = Risk(net, nn.MSELoss(), (inputs, targets))
    parts = whole.on([(inputs[i::20], targets[i::20]) for i in range(20)])
    v = hessian_operator(whole, whole.params).domain.gaussian()
    peaks = []
    for risk in (whole, parts):
        H = hessian_operator(risk, risk.params, mode="reverse-over-reverse")
        with PeakMemory() as memory:
            H @ v
        peaks.append(memory.peak)
    # A twentieth of the activations, and the vectors of length n, which do not shrink.
    assert peaks[1] <= peaks[0] / 20 + 12 * v.nbytes


def test_the_meter_counts_what_is_alive():
    with PeakMemory() as memory:
        a = torch.ones(1000, dtype=torch.float64)
        b = a.view(10, 100)  # a view is no memory
        c = (a + 1.0).requires_grad_()
        assert memory.current == 16_000
        (c**2).sum().backward()
        peak = memory.peak
        del a
        assert memory.current == 24_000  # b keeps a's storage; c and its gradient
        del b
        assert memory.current == 16_000
    assert peak >= 32_000
