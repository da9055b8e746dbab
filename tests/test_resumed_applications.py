# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of an application: other data or arguments are refused, and Ctrl-C loses a block."""

import signal

import pytest
import torch
from torch import nn

import hesse
from hesse import apps
from hesse.curvature.operator import CurvatureOperator
from hesse.errors import ArgumentError
from tests.checkpoint_runs import DOUBLE, seeded

N = 30
X = torch.randn(N, 4, generator=seeded(), dtype=DOUBLE)
Y, Z = torch.randn(2, N, 1, generator=seeded(1), dtype=DOUBLE)
GROUPS = torch.arange(N) // 10
QUERIES = X[:3], Y[:3]
BACKWARDS = torch.arange(N).flip(0)


def fit(y=Y, order=slice(None), weight_decay=0.0):
    """A linear fit: its Hessian knows neither its parameters nor its targets, nor their order."""
    loss = nn.MSELoss()
    model = nn.Linear(4, 1, dtype=DOUBLE)
    return hesse.Risk(model, loss, (X[order], y[order]), weight_decay=weight_decay)


def params(shift=0.0):
    return {"weight": torch.ones(1, 4, dtype=DOUBLE) + shift, "bias": torch.ones(1, dtype=DOUBLE)}


def memorised(path, risk=None, theta=None, **changes):
    options = {"damping": 0.1, "most": 10, "checkpoint": path, **changes}
    return apps.self_influence(risk or fit(), theta or params(), **options).scores


def removed(path, risk=None, theta=None, **changes):
    options = {"damping": 0.1, "rtol": 1e-10, "checkpoint": path, **changes}
    newton = {"removal": "newton", "groups": GROUPS}
    return apps.influence(risk or fit(), theta or params(), QUERIES, **newton, **options).scores


def plane(path, risk=None, theta=None):
    options = {"radius": 1.0, "grid": 3, "generator": seeded(2), "checkpoint": path}
    return apps.landscape(risk or fit(), theta or params(), **options).values


def is_refused(run, path, **changes):
    run(path)
    with pytest.raises(ArgumentError, match="to be the state of a run with"):
        run(path, **changes)


@pytest.mark.parametrize("run", [memorised, removed, plane])
def test_other_targets_are_refused(run, tmp_path):
    is_refused(run, tmp_path / "file", risk=fit(Z))


@pytest.mark.parametrize("run", [memorised, removed])
def test_another_order_of_examples_is_refused(run, tmp_path):
    is_refused(run, tmp_path / "file", risk=fit(order=BACKWARDS))


@pytest.mark.parametrize("run", [memorised, removed, plane])
def test_other_parameters_are_refused(run, tmp_path):
    is_refused(run, tmp_path / "file", theta=params(1.0))


@pytest.mark.parametrize("run", [memorised, removed, plane])
def test_the_same_call_continues(run, tmp_path):
    first, again = run(tmp_path / "file"), run(tmp_path / "file")
    torch.testing.assert_close(again, first, rtol=1e-12, atol=1e-12)


def test_other_data_are_refused_beside_a_curvature_that_is_given(tmp_path):
    unit = torch.eye(5, dtype=DOUBLE)
    is_refused(lambda path, **k: memorised(path, curvature=unit, **k), tmp_path / "f", risk=fit(Z))


@pytest.mark.filterwarnings("ignore:The influences are not exact")
def test_scores_of_fewer_products_are_not_taken_for_others(tmp_path):
    short = {"max_products": 2}
    is_refused(lambda path, **k: removed(path, **{**short, **k}), tmp_path / "f", max_products=99)


def network():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    return hesse.Risk(model, nn.MSELoss(), (X, Y))


@pytest.mark.filterwarnings("ignore:The influences are not exact")
@pytest.mark.parametrize("run", [memorised, removed])
def test_ctrl_c_in_a_block_ends_the_run_which_then_continues(run, tmp_path, monkeypatch):
    risk = network()
    arguments = {"risk": risk, "theta": risk.params, "rtol": 1e-10, "damping": 0.01}
    matmat, products, last = CurvatureOperator._matmat, [], 0

    def counted(self, block):
        products.append(1)
        if len(products) == last:
            signal.raise_signal(signal.SIGINT)
        return matmat(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(CurvatureOperator, "_matmat", counted)
        whole = run(None, **arguments)
        last = len(products) // 2  # within the second of three blocks
        products.clear()
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "file", **arguments)
    assert len(products) == last
    torch.testing.assert_close(run(tmp_path / "file", **arguments), whole, rtol=1e-8, atol=0.0)


# -- Pruning ---------------------------------------------------------------------------------------


def pruned(path, risk=None, theta=None, held_out=(X, Y)):
    options = {"generator": seeded(4), "checkpoint": path, "held_out": held_out}
    return apps.prune(risk or fit(), theta or params(), 0.4, **options).params["weight"]


@pytest.mark.parametrize(
    "changes", [{"risk": fit(Z)}, {"theta": params(1.0)}, {"held_out": (X, Z)}]
)
def test_other_data_and_parameters_of_a_pruning_are_refused(changes, tmp_path):
    assert torch.equal(pruned(tmp_path / "file"), pruned(tmp_path / "file"))
    is_refused(pruned, tmp_path / "file", **changes)


# -- The prior of a posterior ----------------------------------------------------------------------


def posterior(path, risk=None, **changes):
    options = {"generator": seeded(3), "checkpoint": path, **changes}
    return apps.laplace(risk or fit(), params(), **options)


def test_another_prior_is_refused_where_the_noise_is_learnt(tmp_path):
    is_refused(lambda path, prior=1.0: posterior(path, prior=prior), tmp_path / "file", prior=100.0)


def test_another_weight_decay_is_refused(tmp_path):
    is_refused(
        lambda path, decay=0.1: posterior(path, fit(weight_decay=decay), prior="weight-decay"),
        tmp_path / "file",
        decay=0.2,
    )


def test_other_held_out_data_are_refused(tmp_path):
    def run(path, y=Y):
        options = {"prior": "held-out", "max_dense": 2, "noise": 1.0, "rtol": 0.1}
        return posterior(path, held_out=(X, y), **options)

    assert run(tmp_path / "f").prior_precision == run(tmp_path / "f").prior_precision
    is_refused(run, tmp_path / "f", y=Z)


# -- A transition state ----------------------------------------------------------------------------


def test_a_saddle_of_a_function_with_another_slope_is_refused(tmp_path):
    def run(path, slope=0.0):
        def f(x):
            return x[1] ** 2 - x[0] ** 2 + x[0] ** 4 / 4 + slope * x[1]

        x = torch.tensor([0.3, 0.5], dtype=DOUBLE)
        return apps.saddle(f, x, rigid="none", checkpoint=path)

    assert torch.equal(run(tmp_path / "f").x, run(tmp_path / "f").x)
    is_refused(run, tmp_path / "f", slope=0.1)
