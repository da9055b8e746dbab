# SPDX-License-Identifier: Apache-2.0
"""`HessianFree` with any curvature and any preconditioner: oracles for single steps, and runs."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

import hesse
from hesse.errors import ArgumentError, OperatorError
from hesse.optimize import HessianFree
from tests.hessian_free_problems import CURVATURES, DOUBLE, RULES, data, flat, mixed, network, risk

PRECONDITIONERS = {
    "ekfac": "ekfac",
    "kfac": "kfac",
    "nystrom": "nystrom",
    "diagonal": "diagonal",
    "none": "none",
    "a factory": lambda risk, x: hesse.kfac_operator(risk, x),
}


@pytest.mark.some_cases(12)
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CURVATURES)
def test_the_risk_falls_with_every_curvature(name, rule):
    model = network()
    optimizer = HessianFree(risk(model), curvature=CURVATURES[name], damping_rule=rule)
    losses = [float(optimizer.step()) for _ in range(15)]
    assert all(b <= a * (1 + 1e-14) for a, b in pairwise(losses))
    assert losses[-1] < (0.95 if name == "indefinite" else 0.8) * losses[0]


@pytest.mark.some_cases(6)
@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_the_risk_falls_with_every_preconditioner(name, rule):
    model = network()
    f = risk(model)
    optimizer = HessianFree(f, preconditioner=PRECONDITIONERS[name], damping_rule=rule)
    losses = [float(optimizer.step()) for _ in range(15)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda z, t: nn.functional.cross_entropy(z.transpose(1, 2), t),
        lambda z, t: nn.functional.cross_entropy(2.0 * z.flatten(0, 1), t.flatten()),
    ],
    ids=["classes moved", "temperature"],
)
def test_factors_begin_where_the_likelihood_does(name, loss):
    """At its argument, which is not what the model returns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, 4, generator=generator, dtype=DOUBLE)
    labels = torch.randint(0, 3, (20, 5), generator=generator)
    optimizer = HessianFree(hesse.Risk(network(), loss, (x, labels)), preconditioner=name)
    losses = [float(optimizer.step()) for _ in range(6)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("rule", RULES)
def test_one_iteration_of_cg_is_the_preconditioned_gradient(rule):
    """p = -t M g with the best t for the damped model; M is the inverse of K + lambda I."""
    model = network()
    f, before, damping = risk(model), flat(model), 0.3
    optimizer = HessianFree(
        f,
        preconditioner=hesse.kfac_operator,
        damping=damping,
        damping_bounds=(damping, damping),
        max_cg_iterations=1,
        damping_rule=rule,
    )
    G, K = (make(f).to_dense() for make in (hesse.ggn_operator, hesse.kfac_operator))
    g = hesse.ggn_operator(f).flat_gradient
    eye = torch.eye(len(g), dtype=DOUBLE)
    p = -torch.linalg.solve(K + damping * eye, g)
    t = -(g @ p) / (p @ (G + damping * eye) @ p)
    optimizer.step()
    torch.testing.assert_close(flat(model) - before, t * p, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["ekfac", "kfac", "nystrom", "diagonal", "none"])
@pytest.mark.filterwarnings("ignore:the loss is flat", "ignore:no preconditioner")
def test_without_curvature_a_step_goes_down_the_gradient(name):
    """The Gauss-Newton matrix of the absolute error is zero."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 2).double(), torch.randn(30, 4, dtype=DOUBLE)
    f = hesse.Risk(model, nn.L1Loss(), (x, torch.randn(30, 2, dtype=DOUBLE)))
    before, params = flat(model), {k: p.detach().clone() for k, p in model.named_parameters()}
    HessianFree(f, preconditioner=name, damping=10.0).step()
    g = hesse.hessian_operator(f, params).flat_gradient
    torch.testing.assert_close(flat(model) - before, -g / 10.0)


def quadratic(damping_rule, **options):
    """A linear model under the squared error; G is the Hessian."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2).double()
    x = torch.randn(30, 4, dtype=DOUBLE)
    f = hesse.Risk(model, nn.MSELoss(), (x, torch.randn(30, 2, dtype=DOUBLE)))
    return model, f, HessianFree(f, damping_rule=damping_rule, **options)


def test_on_a_quadratic_the_damping_falls_every_time_and_the_model_is_exact():
    """The gain ratio is 1, so that lambda is multiplied by 2/3."""
    _, _, optimizer = quadratic("levenberg-marquardt", damping=0.5, damping_bounds=(0.01, 1.0))
    for step in range(1, 6):
        optimizer.step()
        assert optimizer.param_groups[0]["damping"] == pytest.approx(0.5 * (2 / 3) ** step)


def test_on_a_quadratic_a_scan_takes_newtons_step():
    _, f, optimizer = quadratic("scan", damping_bounds=(1e-10, 1e8), max_cg_iterations=20)
    for _ in range(30):
        optimizer.step()
    H = hesse.hessian_operator(f).to_dense()
    g = hesse.hessian_operator(f).flat_gradient
    assert float(g.norm()) < 1e-7 * float(torch.linalg.eigvalsh(H)[-1])


def test_a_scan_tries_no_larger_damping_where_the_model_is_exact():
    _, _, optimizer = quadratic("scan", damping=0.1, damping_bounds=(0.1, 1e8))
    optimizer.step()
    for _ in range(3):
        before = optimizer.counts.nfev
        optimizer.step()
        assert optimizer.counts.nfev == before + 1


@pytest.mark.some_cases(4)
@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("curvature", ["ggn", "hessian", hesse.fisher_operator])
def test_batches_add_up_to_the_whole(curvature, rule):
    ends, (x, y) = [], data()
    for sizes in ([60], [20, 40], [7] * 8 + [4]):
        model = network()
        batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
        optimizer = HessianFree(
            risk(model, batches), curvature=curvature, preconditioner="none", damping_rule=rule
        )
        for _ in range(4):
            optimizer.step()
        ends.append(flat(model))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(ends[2], ends[0], rtol=1e-7, atol=1e-9)


SETTINGS = {
    "scan": {"damping_rule": "scan"},
    "hessian": {"curvature": "hessian"},
    "fisher": {"curvature": hesse.fisher_operator},
    "kfac": {"curvature": lambda risk, x: hesse.kfac_operator(risk, x, fisher="exact")},
    "preconditioner kfac": {"preconditioner": "kfac", "refresh_every": 2},
    "nystrom": {"preconditioner": "nystrom", "refresh_every": 3},
    "diagonal": {"preconditioner": "diagonal", "refresh_every": 2},
    "factory": {"preconditioner": hesse.kfac_operator, "refresh_every": 3},
}


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_goes_on_from_its_state_to_the_same_bits(name):
    model = network()
    optimizer = HessianFree(risk(model), **SETTINGS[name])
    for _ in range(4):
        optimizer.step()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other = network(1)
    resumed = HessianFree(risk(other), **SETTINGS[name])
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(4):
        optimizer.step()
        resumed.step()
        assert torch.equal(flat(model), flat(other))


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_goes_on_from_its_file_to_the_same_bits(name, tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)  # save after every step
    whole = network()
    expected = HessianFree(risk(whole), **SETTINGS[name])
    for _ in range(7):
        expected.step()
    for start, steps in enumerate((1, 4, 2)):
        model = network(start)
        optimizer = HessianFree(risk(model), checkpoint=tmp_path / "run", **SETTINGS[name])
        for _ in range(steps):
            optimizer.step()
    assert torch.equal(flat(model), flat(whole))
    assert optimizer.counts.nhev == expected.counts.nhev


def test_a_file_of_another_curvature_is_refused(tmp_path):
    f = risk(network())
    HessianFree(f, checkpoint=tmp_path / "run").step()
    with pytest.raises(ArgumentError, match="fisher_operator"):
        HessianFree(f, curvature=hesse.fisher_operator, checkpoint=tmp_path / "run")


@pytest.mark.parametrize("rule", RULES)
def test_negative_curvature_ends_cg_and_raises_the_damping(rule):
    model = network()
    optimizer = HessianFree(
        risk(model),
        curvature=mixed,
        preconditioner="none",
        damping=1e-3,
        damping_rule=rule,
    )
    losses = [float(optimizer.step()) for _ in range(3)]
    seen = [optimizer.status]
    for _ in range(6):
        losses.append(float(optimizer.step()))
        seen.append(optimizer.status)
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rule", RULES)
def test_a_rejected_step_loses_nothing(rule):
    """A curvature far too small: no step of this damping lowers the risk."""
    model = network()
    kept = flat(model)
    optimizer = HessianFree(
        risk(model),
        curvature=lambda risk, x: 1e-12 * hesse.ggn_operator(risk, x) + 0.0 * mixed(risk, x),
        preconditioner="none",
        damping=1e-9,
        damping_bounds=(1e-9, 1e-8),
        damping_rule=rule,
    )
    value = float(optimizer.step())
    assert torch.equal(flat(model), kept) or float(optimizer.step()) < value
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


class Edge(nn.Module):
    """A loss that is NaN beyond an edge close to the start."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, outputs, targets):
        loss = ((outputs - targets) ** 2).mean()
        if float(outputs.detach().abs().max()) > 2.0:
            return loss * float(self.kind)
        return loss


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize("rule", RULES)
def test_trial_points_that_are_not_finite_are_stepped_back_from(kind, rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    x = torch.linspace(-1, 1, 50)[:, None]
    optimizer = HessianFree(
        hesse.Risk(model, Edge(kind), (x, 1.9 * torch.sin(3 * x))), damping_rule=rule
    )
    losses = [float(optimizer.step()) for _ in range(20)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_sketch_of_a_hessian_with_negative_eigenvalues_preconditions():
    model = network()
    f = risk(model)
    H = hesse.hessian_operator(f).to_dense()
    assert torch.linalg.eigvalsh(H)[0] < -0.01
    optimizer = HessianFree(f, curvature="hessian", preconditioner="nystrom")
    losses = [float(optimizer.step()) for _ in range(5)]
    assert all(b < a for a, b in pairwise(losses))


def test_wrong_factories_are_named():
    f = risk(network())
    for name in ("curvature", "preconditioner"):
        with pytest.raises(ArgumentError, match=name):
            HessianFree(f, **{name: "x"})
        with pytest.raises(OperatorError, match=rf"{name} to be a name or a function"):
            HessianFree(f, **{name: hesse.kfac_operator(f)})
        with pytest.raises(OperatorError, match=rf"{name}\(f, x\) to be a symmetric operator"):
            HessianFree(f, **{name: lambda risk, x: hesse.identity_operator(3)}).step()
    with pytest.raises(OperatorError, match="structure gives the inverse"):
        HessianFree(f, preconditioner=hesse.ggn_operator).step()
