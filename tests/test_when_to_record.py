# SPDX-License-Identifier: Apache-2.0
"""When `auto` records: what f is made of decides, and what its products take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hesse.ad.hessian import RetainedHessian
from hesse.curvature import hessian_operator
from hesse.engine.options import Request
from hesse.engine.preparation import Preparation

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


def looked_at(f: Callable[[Tensor], Tensor], seconds: float, nbytes: int = 24) -> Preparation:
    """As after one product that took so long, of vectors of so many bytes."""
    preparation = Preparation(Request())
    graph = RetainedHessian(lambda leaves: f(leaves[0]), [torch.linspace(0.1, 1.0, 6)], "f")
    preparation.look_at(graph, nbytes)
    preparation.seconds = seconds
    return preparation


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_passes_over_memory_are_recorded_at_the_second_product(f):
    assert looked_at(f, 1.0).pays


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_passes_over_long_vectors_are_recorded_at_once(f):
    assert looked_at(f, 0.0, nbytes=1 << 21).pays


@pytest.mark.parametrize("f", MULTIPLIES.values(), ids=MULTIPLIES)
def test_products_of_long_vectors_wait_where_matrices_are_multiplied(f):
    assert not looked_at(f, 0.0, nbytes=1 << 21).pays


def test_the_first_product_of_a_long_vector_is_taken_by_a_program():
    x = torch.linspace(-1.0, 1.0, 600_000, dtype=torch.float64)
    H = hessian_operator(lambda x: (x**4).sum() / 12, x)
    v = torch.ones_like(x)
    assert torch.allclose(H @ v, x**2, rtol=1e-14, atol=0)
    assert H.plan.rung == "traced-split"


@pytest.mark.parametrize("f", PASSES.values(), ids=PASSES)
def test_not_when_building_the_programs_takes_longer(f):
    assert not looked_at(f, 1e-4).pays


@pytest.mark.parametrize("f", MULTIPLIES.values(), ids=MULTIPLIES)
def test_matrix_products_wait_until_it_pays(f):
    preparation = looked_at(f, 1.0)
    assert not preparation.pays
    preparation.spent = preparation.patience
    assert preparation.pays
