# SPDX-License-Identifier: Apache-2.0
"""Steps of `HessianFree` without CG: the preconditioned gradient and the last step."""

import pytest
import torch
from torch import nn

import hesse
from hesse.errors import NonFiniteError
from hesse.optimize import HessianFree
from tests.hessian_free_problems import CURVATURES, DOUBLE, RULES, Cliff, flat, network, risk


def _split(f, vector):
    """The tensors of the parameters in a flat vector."""
    parts = vector.split([p.numel() for p in f.params.values()])
    return [part.view_as(p) for part, p in zip(parts, f.params.values(), strict=True)]


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "diagonal"])
@pytest.mark.parametrize(
    "options",
    [
        lambda K: {"curvature": K},
        lambda K: {"preconditioner": K, "max_cg_iterations": 0},
        lambda K: {"preconditioner": K, "max_cg_iterations": 0, "damping_rule": "scan"},
    ],
    ids=["curvature", "no CG", "no CG in a scan"],
)
def test_steps_without_cg_are_rescaled_exactly(options, kind):
    """alpha p + mu p0 with the best two numbers for the Gauss-Newton matrix."""
    model, damping = network(), 0.2
    f = risk(model)
    optimizer = HessianFree(
        f, **options(CURVATURES[kind]), damping=damping, damping_bounds=(damping, damping)
    )
    start = flat(model)
    optimizer.step()
    assert optimizer.counts.nhev <= 2  # one, and one to see whether programs can be made
    last, x = flat(model) - start, flat(model)
    params = {name: p.detach().clone() for name, p in model.named_parameters()}
    G, K = hesse.ggn_operator(f, params), CURVATURES[kind](f, params)
    eye = torch.eye(len(x), dtype=DOUBLE)
    p = -torch.linalg.solve(K.to_dense() + damping * eye, G.flat_gradient)
    P = torch.stack([last, p], dim=1)
    y = -torch.linalg.solve(P.T @ (G.to_dense() + damping * eye) @ P, P.T @ G.flat_gradient)
    before = optimizer.counts.nhev
    optimizer.step()
    torch.testing.assert_close(flat(model) - x, P @ y, rtol=1e-6, atol=1e-9)
    assert optimizer.counts.nhev == before + 2


@pytest.mark.parametrize("rule", RULES)
def test_without_preconditioner_and_cg_a_step_goes_down_the_gradient(rule):
    """-t g with the best t for the damped model, in the first step."""
    model, damping = network(), 0.2
    f, before = risk(model), flat(model)
    bounds = (damping, damping)
    HessianFree(
        f, preconditioner="none", max_cg_iterations=0, damping=damping, damping_bounds=bounds,
        damping_rule=rule,
    ).step()  # fmt: skip
    G = hesse.ggn_operator(f, dict(zip(f.params, _split(f, before), strict=True)))
    g = G.flat_gradient
    t = (g @ g) / (g @ (G.to_dense() + damping * torch.eye(len(g), dtype=DOUBLE)) @ g)
    torch.testing.assert_close(flat(model) - before, -t * g, rtol=1e-8, atol=1e-10)


def test_a_step_to_where_there_is_no_gradient_is_taken_back():
    """By the step on the next data, from where it came; without CG no gradient is looked at."""
    model, x = Cliff(), torch.linspace(-1.0, 1.0, 50)
    optimizer = HessianFree(
        hesse.Risk(model, nn.MSELoss(), (x, x)), preconditioner="none", max_cg_iterations=0,
        mode="retained-graph",
    )  # fmt: skip
    optimizer.step(data=(x, 0.9 * x))
    before, damping = model.w.item(), optimizer.param_groups[0]["damping"]
    assert before > 0.8
    optimizer.step(data=(x, 0.1 * x))
    assert model.w.item() < 0.5
    optimizer.step(data=(x, 0.8 * x))
    assert 0.7 < model.w.item() < 0.9
    assert optimizer.param_groups[0]["damping"] > damping
    optimizer.step(data=(x, 0.8 * x))
    assert model.w.item() == pytest.approx(0.8, abs=0.05)


def test_without_a_step_to_take_back_a_gradient_that_is_not_finite_is_an_error():
    model, x = Cliff(), torch.linspace(-1.0, 1.0, 50)
    with torch.no_grad():
        model.w.fill_(0.3)
    optimizer = HessianFree(hesse.Risk(model, nn.MSELoss(), (x, x)), max_cg_iterations=0)
    with pytest.raises(NonFiniteError, match="gradient with respect to 'w'"):
        optimizer.step(data=(x, x))
    assert model.w.item() == pytest.approx(0.3)
