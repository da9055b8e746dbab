# SPDX-License-Identifier: Apache-2.0
"""`precision=`: faster units inside a product, and in nothing else."""

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator
from hesse.errors import ArgumentError, FallbackWarning
from hesse.risk.risk import Risk
from hesse.tracing import precision
from hesse.vectors.inner_products import norm

CPU = torch.device("cpu")
needs_units = pytest.mark.skipif(
    not precision.has_units("medium", CPU), reason="no bfloat16 units in this processor"
)


def network_risk(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 128)]
    model = nn.Sequential(*layers, nn.Tanh(), nn.Linear(128, 10)).to(dtype)
    return Risk(
        model, nn.CrossEntropyLoss(), (torch.randn(64, 1, 8, 8).to(dtype), torch.arange(64) % 10)
    )


def direction(risk):
    n = sum(leaf.numel() for leaf in risk.params.values())
    dtype = next(iter(risk.params.values())).dtype
    return torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(1))


@needs_units
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_the_plan_says_the_error_of_products_in_bfloat16(make):
    risk = network_risk()
    exact, coarse = make(risk, risk.params), make(risk, risk.params, precision="medium")
    v = direction(risk)
    ours, theirs = coarse @ v, exact @ v
    error = norm(ours - theirs) / norm(theirs)
    assert 1e-5 < error < 3e-2
    assert f"relative error of a product {error:.1e}" in str(coarse.plan)
    block = torch.stack([v, v.flip(0)], dim=1)
    assert norm((coarse @ block)[:, 0] - theirs) < 3e-2 * norm(theirs)


@needs_units
def test_value_and_gradient_stay_exact_and_new_points_are_checked():
    risk = network_risk()
    exact, coarse = (
        hessian_operator(risk, risk.params, precision=p) for p in ("highest", "medium")
    )
    v = direction(risk)
    for scale in (1.0, 0.9, 0.8, 0.7):
        x = {name: scale * leaf for name, leaf in risk.params.items()}
        ours, theirs = coarse.at(x), exact.at(x)
        ours @ v
        assert norm(ours.flat_gradient - theirs.flat_gradient) <= 1e-5 * norm(theirs.flat_gradient)
    assert not any("anew" in note for note in ours.plan.notes)


def test_the_setting_does_not_leak():
    before = torch.get_float32_matmul_precision()
    risk = network_risk()
    for level in ("high", "medium"):
        hessian_operator(risk, risk.params, precision=level) @ direction(risk)
        assert torch.get_float32_matmul_precision() == before
    a = torch.randn(300, 300)
    assert (a @ a - (a.double() @ a.double())).abs().max() < 1e-3


def test_float64_keeps_its_precision():
    risk = network_risk(torch.float64)
    v = direction(risk)
    reference = hessian_operator(risk, risk.params, mode="retained-graph") @ v
    product = hessian_operator(risk, risk.params, precision="medium") @ v
    assert norm(product - reference) <= 1e-12 * norm(reference)


def test_without_bfloat16_units_products_are_exact_and_the_plan_says_so(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    risk = network_risk()
    v = direction(risk)
    H = hessian_operator(risk, risk.params, precision="medium")
    reference = hessian_operator(risk, risk.params) @ v
    assert norm(H @ v - reference) <= 1e-5 * norm(reference)
    assert "no units for it here" in str(H.plan)


def test_a_function_that_cannot_be_traced_warns_that_precision_has_no_effect(square):
    x = torch.ones(3)
    with pytest.warns(FallbackWarning, match="precision='medium' has no effect"):
        product = hessian_operator(lambda x: square(x).sum(), x, precision="medium") @ x
    assert product.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "low"}, "precision to be one of"),
        ({"precision": "medium", "mode": "retained-graph"}, "mode whose products are programs"),
        ({"precision": "high", "mode": "reverse-over-reverse"}, "Use mode='auto'"),
    ],
)
def test_unknown_precisions_and_modes_without_programs_are_refused(options, match):
    with pytest.raises(ArgumentError, match=match):
        hessian_operator(lambda x: (x**2).sum(), torch.ones(2), **options)
