# SPDX-License-Identifier: Apache-2.0
"""An operator may return what it was given: nobody writes over that."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hesse
from hesse.estimators import logdet, matrix_function, norm, spectral_density, trace
from hesse.estimators.probes import products
from hesse.krylov import eigsh, solve
from hesse.operators import LinearOperator
from hesse.vectors.space import Space

N = 200
B = torch.linspace(-1.0, 2.0, N, dtype=torch.float64)


class Same(LinearOperator):
    """The identity, without a copy."""

    def __init__(self) -> None:
        super().__init__(Space.flat(N, torch.float64), symmetric=True)

    def _matvec(self, v: Tensor) -> Tensor:
        return v

    def _matmat(self, block: Tensor) -> Tensor:
        return block


@pytest.mark.parametrize("method", ["cg", "minres", "lsmr", "gmres", "auto"])
def test_solve(method):
    assert torch.allclose(solve(Same(), B, method=method).x, B)


def test_solve_of_a_block():
    block = torch.stack([B, B**2], dim=1)
    assert torch.allclose(solve(Same(), block, method="block-cg").x, block)


@pytest.mark.parametrize("method", ["lanczos", "lobpcg"])
def test_eigsh(method):
    pairs = eigsh(Same(), 2, method=method)
    assert torch.allclose(pairs.values, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(pairs.vectors.T @ pairs.vectors, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("method", ["hutchinson", "xtrace", "xnystrace"])
def test_trace(method):
    assert trace(Same(), method=method).value == pytest.approx(N)


def test_functions_of_it():
    assert torch.allclose(matrix_function("exp", Same(), B).value, math.e * B)
    assert norm(Same()).value == pytest.approx(N**0.5)
    assert logdet(Same()).value == pytest.approx(0.0, abs=1e-12)
    assert spectral_density(Same()).moment(1) == pytest.approx(1.0)


def test_the_probes_stay_as_they_are():
    rows = torch.ones(3, N, dtype=torch.float64)
    products(Same(), rows, 8).mul_(2.0)
    assert torch.equal(rows, torch.ones(3, N, dtype=torch.float64))


def renormalised(w):
    """torch writes the rows that it looks up, scaled to length one at most."""
    places = torch.tensor([[0, 1], [2, 0]])
    return (torch.nn.functional.embedding(places, w, max_norm=1.0) ** 3).sum()


def test_a_function_that_writes_to_its_argument_does_not_reach_the_tensors_of_the_caller():
    w = 3 * torch.randn(3, 4, dtype=torch.float64)
    before = w.clone()
    for call in (
        lambda: hesse.hvp(renormalised, w, w),
        lambda: hesse.hessian_operator(renormalised, w) @ w,
        lambda: hesse.jacobian_operator(renormalised, w) @ w,
        lambda: hesse.minimize(renormalised, w, max_iterations=1),
        lambda: hesse.least_squares(renormalised, w, max_iterations=1),
    ):
        call()
        assert torch.equal(w, before)


def test_a_model_that_writes_to_its_weight_does_not_reach_params():
    model = torch.nn.Sequential(torch.nn.Embedding(3, 4, max_norm=1.0), torch.nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.mul_(10.0)
    before = model[0].weight.detach().clone()
    data = torch.tensor([0, 1, 2, 0]), torch.zeros(4, 1)
    risk = hesse.Risk(model, torch.nn.MSELoss(), data)
    risk(risk.params)
    _ = hesse.hessian_operator(risk, risk.params).value
    assert torch.equal(risk.params["0.weight"], before)
    assert torch.equal(model[0].weight, before)
