# SPDX-License-Identifier: Apache-2.0
"""Exact products of unedited models: whatever a model is made of, Hesse takes it as it is."""

from functools import cache

import pytest
import torch

import hesse
from tests.model_data import assert_close, direction
from tests.model_zoo import MODELS, OWN_LOSS

# --------------------------------------------------------------------------------------------------
# What holds for all of them


@cache
def case_of(name):
    """The model, from one seed: nothing that is done with it may change it."""
    torch.manual_seed(0)
    return MODELS[name]()


@cache
def expected(name, seed, point):
    """The gradient and the product with one direction, by plain autograd."""
    case = case_of(name)
    x = getattr(case, point)
    return case.gradient(seed, x), case.product(seed, x, direction(case.x))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", MODELS)
def test_one_product_of_a_function_and_of_a_risk(name):
    case = case_of(name)
    v = direction(case.x)
    product = hesse.hvp(case.f(0), case.x, v)
    assert_close(product, expected(name, 0, "x")[1], case.tolerance)
    assert_close(hesse.hvp(case.risk(0), case.x, v), product, 1e-12)


@pytest.mark.some_cases(32)
@pytest.mark.fast_cases(10)
@pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
@pytest.mark.parametrize("name", MODELS)
def test_an_operator_at_two_points_and_on_new_data(name, mode):
    case = case_of(name)
    risk, v = case.risk(0), direction(case.x)
    H = hesse.hessian_operator(risk, case.x, mode=mode)
    columns = [direction(case.x, seed) for seed in range(3)]
    singles = torch.stack([H @ column for column in columns], dim=1)
    assert_close(H @ torch.stack(columns, dim=1), singles, 1e-10)
    for operator, point, seed in [
        (H, "x", 0),
        (H.at(case.near), "near", 0),
        (hesse.hessian_operator(risk.on(case.data(1)), case.x, mode=mode), "x", 1),
    ]:
        gradient, product = expected(name, seed, point)
        assert_close(operator @ v, product, case.tolerance)
        assert_close(operator.flat_gradient, gradient, 1e-2 * case.tolerance)
    assert H.mode == mode or mode == "auto"


@pytest.mark.some_cases(24)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("mode", ["auto", "traced-split"])
@pytest.mark.parametrize("name", [name for name in MODELS if name not in OWN_LOSS])
def test_gauss_newton(name, mode):
    case = case_of(name)
    risk, v = case.risk(0), direction(case.x)
    G = hesse.ggn_operator(risk, case.x, mode=mode)
    assert_close(G @ v, case.gauss_newton_product(v), 1e-2 * case.tolerance)


@pytest.mark.parametrize("name", OWN_LOSS)
def test_the_gauss_newton_matrix_of_a_model_that_returns_its_loss(name):
    """It is that of the likelihood which the model calls, a Fisher matrix."""
    case = case_of(name)
    v = direction(case.x)
    G = hesse.ggn_operator(case.risk(0), case.x)
    F = hesse.fisher_operator(case.risk(0), case.x)
    assert_close(G @ v, F @ v, 10 * case.tolerance)
