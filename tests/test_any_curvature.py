# SPDX-License-Identifier: Apache-2.0
"""`minimize` with any operator in the place of the Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hesse
from hesse.errors import OperatorError

DOUBLE = torch.float64


def risk(weight_decay: float = 1e-2) -> hesse.Risk:
    """A convex one: softmax regression on two batches."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x = torch.randn(60, 4, generator=generator, dtype=DOUBLE)
    y = torch.randint(0, 3, (60,), generator=generator)
    batches = [(x[:25], y[:25]), (x[25:], y[25:])]
    return hesse.Risk(model, nn.CrossEntropyLoss(), batches, weight_decay=weight_decay)


def damped(make):
    return lambda risk, x: make(risk, x) + 1e-2 * hesse.identity_operator(15)


METHODS = ["newton-cg", "trust-cg", "trust-krylov", "cubic", "newton-minres"]
FACTORIES = {
    "Gauss-Newton": hesse.ggn_operator,
    "Fisher": hesse.fisher_operator,
    "Fisher, sampled": lambda risk, x: hesse.fisher_operator(
        risk, x, "sampled", samples=50, generator=torch.Generator().manual_seed(0)
    ),
    "Fisher, empirical": damped(lambda risk, x: hesse.fisher_operator(risk, x, "empirical")),
    "K-FAC": lambda risk, x: hesse.kfac_operator(risk, x, damping=1e-2),
    "EK-FAC": lambda risk, x: hesse.ekfac_operator(risk, x, damping=1e-2),
    "Hessian + c I": damped(hesse.hessian_operator),
    "a multiple of the identity": lambda risk, x: 1.0 * hesse.identity_operator(15, DOUBLE),
    "diagonal": lambda risk, x: hesse.diagonal_operator(
        hesse.hessian_operator(risk, x).to_dense().diagonal()
    ),
}


@pytest.mark.some_cases(12)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize(
    "method", ["newton-cg", "trust-cg", "trust-krylov", "cubic", "newton-minres"]
)
@pytest.mark.parametrize("name", FACTORIES)
def test_the_minimum_is_that_of_the_hessian(name, method):
    f = risk(weight_decay=0.1)  # or steps by the identity alone would be thousands
    expected = hesse.minimize(f, f.params)
    options = {"curvature": FACTORIES[name], "rtol": 1e-6, "max_iterations": 3000}
    result = hesse.minimize(f, f.params, method, **options)
    assert result.success, result.message
    assert result.fun == pytest.approx(expected.fun, rel=1e-9)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["K-FAC", "EK-FAC", "diagonal"])
def test_what_structure_inverts_takes_no_products(name):
    f = risk(weight_decay=0.1)
    result = hesse.minimize(f, f.params, curvature=FACTORIES[name], rtol=1e-6)
    assert result.success
    assert result.nhev <= 30  # of the certificate alone, with the Hessian


def test_the_gradient_is_that_of_the_function_and_a_quadratic_takes_one_step():
    M = torch.diag(torch.arange(1.0, 6.0).double())
    b = torch.ones(5, dtype=DOUBLE)
    result = hesse.minimize(
        lambda x: 0.5 * x @ M @ x - b @ x,
        torch.zeros(5, dtype=DOUBLE),
        curvature=lambda f, x: hesse.diagonal_operator(M.diagonal()),
    )
    assert result.nit == 1
    torch.testing.assert_close(result.x, b / M.diagonal())


@pytest.mark.parametrize(
    "factory",
    [
        lambda f, x: hesse.identity_operator(3, DOUBLE),
        lambda f, x: torch.eye(15, dtype=DOUBLE),
        lambda f, x: hesse.dense_operator(torch.ones(15, 15).double().triu()),
    ],
)
def test_what_does_not_fit_is_refused(factory):
    f = risk()
    with pytest.raises(OperatorError, match="symmetric operator of 15 variables"):
        hesse.minimize(f, f.params, curvature=factory)


def test_a_checkpoint_knows_the_factory(tmp_path):
    f, path = risk(), tmp_path / "run"
    options = {"curvature": hesse.fisher_operator, "checkpoint": path}
    whole = hesse.minimize(f, f.params, curvature=hesse.fisher_operator)
    hesse.minimize(f, f.params, max_iterations=2, **options)
    assert hesse.minimize(f, f.params, **options).fun == pytest.approx(whole.fun, rel=1e-12)
    with pytest.raises(hesse.HesseError, match="fisher_operator"):
        hesse.minimize(f, f.params, curvature="ggn", checkpoint=path)
