# SPDX-License-Identifier: Apache-2.0
"""Random numbers are noticed, wherever they are drawn and whatever of a function feels them."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hesse.curvature import ggn_operator, hessian_operator, hvp
from hesse.errors import RandomnessError
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm
from tests.custom_functions import Cube

DOUBLE = torch.float64
INPUTS = torch.randn(30, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
LABELS = (INPUTS[:, 0] > 0).double()
X = torch.linspace(1.0, 2.0, 5, dtype=DOUBLE)
V = torch.ones(5, dtype=DOUBLE)
OWN = torch.Generator().manual_seed(0)
NUMPY = np.random.default_rng(0)
PYTHON = random.Random(0)

# Where a function may draw a number from.
DRAWS = {
    "torch": lambda: torch.rand(()),
    "torch, in place": lambda: torch.empty(()).uniform_(),
    "a generator of torch": lambda: torch.rand((), generator=OWN),
    "a generator of torch, in place": lambda: torch.empty(()).uniform_(generator=OWN),
    "numpy": np.random.rand,
    "numpy, few": lambda: np.random.randn(1)[0],
    "python": random.random,
}


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "reverse-over-reverse"])
@pytest.mark.parametrize("source", DRAWS)
def test_noise_is_noticed_wherever_it_is_drawn(source, mode):
    H = hessian_operator(lambda x: (DRAWS[source]() * x**3).sum(), X, mode=mode)
    with pytest.raises(RandomnessError, match="fix the seed inside f"):
        H @ V


@pytest.mark.parametrize("source", DRAWS)
def test_noise_is_noticed_where_programs_are_recorded_at_once(source):
    H = hessian_operator(lambda x: (DRAWS[source]() * x**3).sum(), X)
    H.announce(1000)
    with pytest.raises(RandomnessError, match="fix the seed inside f"):
        H @ V


@pytest.mark.parametrize("source", [name for name in DRAWS if "torch" in name])
def test_noise_is_noticed_in_a_single_product(source):
    with pytest.raises(RandomnessError, match="fix the seed inside f"):
        hvp(lambda x: (DRAWS[source]() * x**3).sum(), X, V)


@pytest.mark.parametrize("source", DRAWS)
def test_no_difference_of_gradients_is_taken_of_noise(source):
    with pytest.raises(RandomnessError, match="fix the seed inside f"):
        hvp(lambda x: (DRAWS[source]() * Cube.apply(x)).sum(), X, V)


def reseeded():
    np.random.seed(0)
    random.seed(0)
    noise = torch.randn(5, dtype=DOUBLE, generator=OWN.manual_seed(0))
    return noise + np.random.rand() + random.random()


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "reverse-over-reverse"])
def test_a_seed_inside_makes_a_function_deterministic(mode):
    H = hessian_operator(lambda x: (reseeded() * x**3).sum(), X, mode=mode)
    expected = 6 * reseeded() * X * V
    for _ in range(2):
        assert norm(H @ V - expected) <= 1e-14 * norm(expected)


@pytest.mark.parametrize("draw", [NUMPY.random, PYTHON.random])
def test_a_generator_that_cannot_be_seen_is_noticed_by_a_trace(draw):
    H = hessian_operator(lambda x: (draw() * x**3).sum(), X, mode="traced-split")
    with pytest.raises(RandomnessError):
        H @ V


@pytest.mark.parametrize("draw", [NUMPY.random, PYTHON.random])
def test_a_generator_that_cannot_be_seen_is_noticed_when_programs_take_over(draw):
    H = hessian_operator(lambda x: (draw() * x**3).sum(), X)
    H @ V
    H.announce(1000)
    with pytest.raises(RandomnessError):
        H @ V


# --------------------------------------------------------------------------------------------------
# A value that does not feel the noise


@pytest.mark.parametrize("mode", ["auto", "retained-graph", "reverse-over-reverse"])
def test_dropout_before_a_head_of_zeros(mode):
    """The value is log 2 for every mask; the gradient is not the same."""

    def f(w):
        return F.binary_cross_entropy_with_logits(F.dropout(INPUTS, 0.5) @ w, LABELS)

    assert f(0 * X) == f(0 * X)
    with pytest.raises(RandomnessError):
        hessian_operator(f, 0 * X, mode=mode) @ V


def test_dropout_at_a_minimum():
    """Value and gradient are zero for every mask; the product is not the same."""
    with pytest.raises(RandomnessError):
        hessian_operator(lambda w: (F.dropout(INPUTS, 0.5) @ w).square().sum(), 0 * X) @ V


class Head(nn.Module):
    """Dropout and a head of zeros."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(5, dtype=DOUBLE))

    def forward(self, x):
        return F.dropout(x, 0.5) @ self.w


@pytest.mark.parametrize("operator", [hessian_operator, ggn_operator])
@pytest.mark.parametrize("size", [10, 30])
def test_dropout_in_a_risk_with_a_head_of_zeros(operator, size):
    batches = list(zip(INPUTS.split(size), LABELS.split(size), strict=True))

    def product():
        risk = Risk(Head(), nn.BCEWithLogitsLoss(), batches)  # raises here for several batches
        return operator(risk, risk.params) @ V

    with pytest.raises(RandomnessError):
        product()


def test_a_deterministic_function_is_evaluated_once():
    calls = []

    def f(x):
        calls.append(None)
        return (x**3).sum()

    H = hessian_operator(f, X, mode="retained-graph")
    H @ V
    H @ V
    hvp(f, X, V)
    assert len(calls) == 2
