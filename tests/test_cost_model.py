# SPDX-License-Identifier: Apache-2.0
"""When `auto` mode traces: what f is made of decides, and what its products take."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.ad.hessian import HessianGraph
from hesse.curvature import hessian_operator
from hesse.engine.cost_model import (
    CountedCost,
    MeasuredCost,
    Usage,
    current_cost_model,
    deterministic,
)
from hesse.engine.machine_speed import slowness

A = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))

MULTIPLIES: dict[str, Callable[[Tensor], Tensor]] = {
    "matrix times vector": lambda x: (A @ x).exp().sum(),
    "matrix product": lambda x: (x.view(2, 3) @ x.view(3, 2)).pow(3).sum(),
    "batched": lambda x: torch.bmm(x.view(1, 2, 3), x.view(1, 3, 2)).exp().sum(),
    "einsum": lambda x: torch.einsum("ij,jk->ik", x.view(2, 3), x.view(3, 2)).exp().sum(),
    "dot": lambda x: torch.dot(x, x.exp()),
    "linear": lambda x: F.linear(x, A).tanh().sum(),
    "convolution": lambda x: F.conv1d(x.view(1, 1, 6), x.view(1, 1, 6)).exp().sum(),
    "recurrent": lambda x: nn.RNN(6, 3)(x.view(1, 6))[0].exp().sum(),
}
PASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "Rosenbrock": lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(),
    "means and norms": lambda x: F.layer_norm(x, (6,)).exp().mean() + x.norm(),
    "softmax": lambda x: torch.logsumexp(x * x, 0),
}


MEASURED = MeasuredCost()


def inspected(f: Callable[[Tensor], Tensor], seconds: float, nbytes: int = 24) -> Usage:
    """As after one product that took so long, of vectors of so many bytes."""
    usage = Usage(num_products=1, graph_seconds=seconds)
    graph = HessianGraph(lambda leaves: f(leaves[0]), [torch.linspace(0.1, 1.0, 6)])
    usage.inspect(graph.node_names, nbytes)
    return usage


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_passes_over_memory_are_traced_at_the_second_product(f):
    assert MEASURED.should_trace(inspected(f, 1.0))


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_passes_over_long_vectors_are_traced_whatever_they_take(f):
    assert MEASURED.should_trace(inspected(f, 0.0, nbytes=1 << 21))


@pytest.mark.parametrize("f", MULTIPLIES.values(), ids=MULTIPLIES)
def test_products_of_long_vectors_wait_where_matrices_are_multiplied(f):
    assert not MEASURED.should_trace(inspected(f, 0.0, nbytes=1 << 21))


def test_the_second_product_of_a_long_vector_is_taken_by_a_program():
    """That was compared with the first, of a direction that has been overwritten since."""
    x = torch.linspace(-1.0, 1.0, 600_000, dtype=torch.float64)
    H = hessian_operator(lambda x: (x**4).sum() / 12, x)
    memory = np.ones(len(x))  # torch does not see who writes to it
    v = torch.from_numpy(memory)
    for scale, mode in [(1.0, "retained-graph"), (2.0, "traced-split"), (3.0, "traced-split")]:
        memory[:] = scale
        assert torch.allclose(H @ v, scale * x**2, rtol=1e-14, atol=0)
        assert H.plan.mode == mode


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_not_when_building_the_programs_takes_longer(f):
    assert not MEASURED.should_trace(inspected(f, 1e-4))


@pytest.mark.parametrize("f", MULTIPLIES.values(), ids=MULTIPLIES)
def test_matrix_products_wait_until_it_pays(f):
    usage = inspected(f, 1.0)
    assert not MEASURED.should_trace(usage)
    # Four products and the nodes, and a quarter more, or what three tenths of a product save.
    usage.seconds = 1.3 * (4.0 + 1e-3 * usage.num_nodes) / 0.3
    assert MEASURED.should_trace(usage)


def test_a_machine_that_is_slower_in_python_traces_later():
    usage = Usage(num_nodes=100, graph_seconds=1e-3, seconds=0.2)
    assert MEASURED.should_trace(usage)
    assert not MeasuredCost(slowness=10.0).should_trace(usage)


def test_the_speed_of_the_machine_is_measured_once_a_process(monkeypatch):
    first = slowness()
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    assert slowness() == first > 0.0
    assert current_cost_model() == MeasuredCost(slowness=first)


def test_a_cost_model_is_a_pure_function_of_the_usage():
    usage = inspected(MULTIPLIES["dot"], 1.0)
    before = vars(usage).copy()
    answers = [(MEASURED.should_trace(usage), MEASURED.break_even(usage)) for _ in "ab"]
    assert answers[0] == answers[1]
    assert vars(usage) == before


def test_within_deterministic_counts_decide_whatever_the_clock_says(monkeypatch):
    """Two operators under clocks that differ by six orders of magnitude take the same decisions."""

    def modes(seconds):
        ticks = iter(range(10**6))
        monkeypatch.setattr("time.perf_counter", lambda: seconds * next(ticks))
        with deterministic():
            H = hessian_operator(lambda x: (A @ x).exp().sum(), torch.linspace(0.1, 1.0, 6))
        products = []
        for _ in range(6):
            products.append((H @ torch.ones(6)).tolist())
            products.append(H.mode)
        return products

    assert modes(1e-6) == modes(1.0)
    assert "traced-split" in modes(1.0)


def test_counted_cost_never_compiles():
    usage = Usage(num_products=10**9, seconds=1e9, compile_after=CountedCost().compile_after(1.0))
    assert not usage.should_compile
    assert CountedCost().should_trace(Usage(num_products=2))
    assert not CountedCost().should_trace(Usage(num_products=1, graph_seconds=1e9))
