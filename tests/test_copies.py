# SPDX-License-Identifier: Apache-2.0
"""Pickles and copies of operators and risks: what is prepared stays behind, and is made again."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hesse.curvature import ggn_operator, hessian_operator
from hesse.engine.program_cache import ProgramCache
from hesse.krylov import eigsh, solve, svds
from hesse.risk.risk import Risk
from hesse.vectors.inner_products import norm

MODES = pytest.mark.parametrize("mode", ["auto", "retained-graph", "traced-split"])
COPIES = pytest.mark.parametrize(
    "copied",
    [lambda given: pickle.loads(pickle.dumps(given)), copy.deepcopy, copy.copy],
    ids=["pickle", "deepcopy", "copy"],
)
X, Y = torch.randn(12, 3).double(), torch.randn(12, 2).double()


def quartic(p):
    return (torch.tanh(X @ p["w"]) ** 2).sum() + (p["w"] ** 4).sum() + (p["b"] ** 3).sum()


def risk_of(batches=1):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = list(zip(X.split(12 // batches), Y.split(12 // batches), strict=True))
    return Risk(net, nn.MSELoss(), data, 0.1)


def used(A):
    A.announce(1000)
    v = torch.linspace(-1, 1, A.shape[0]).double()
    return A, v, A.matvec(v)


@COPIES
@MODES
def test_an_operator_of_a_function_can_be_copied_after_a_product(mode, copied):
    point = {"w": torch.randn(3).double(), "b": nn.Parameter(X[0], requires_grad=False)}
    H, v, product = used(hessian_operator(quartic, point, mode=mode))
    again = copied(H)
    assert norm(again @ v - product) <= 1e-12 * norm(product)
    assert torch.equal(again.flat_gradient, H.flat_gradient)
    assert norm(again.at(point) @ v - product) <= 1e-12 * norm(product)


@pytest.mark.some_cases(20)
@pytest.mark.fast_cases(11)
@COPIES
@MODES
@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("make", [hessian_operator, ggn_operator])
def test_an_operator_of_a_risk_can_be_copied_after_a_product(make, batches, mode, copied):
    risk = risk_of(batches)
    A, v, product = used(make(risk, risk.params, mode=mode))
    again = copied(2.0 * A)  # operators made of it as well
    assert norm(again @ v - 2.0 * product) <= 1e-12 * norm(product)


@pytest.mark.parametrize("copied", [lambda given: pickle.loads(pickle.dumps(given)), copy.deepcopy])
def test_a_risk_can_be_copied_after_a_recording(copied):
    risk = risk_of(3)
    _, v, product = used(ggn_operator(risk, risk.params, mode="traced-split"))
    assert risk.programs
    again = copied(risk)
    assert not again.programs
    G = ggn_operator(again, again.params, mode="traced-split")
    assert norm(G @ v - product) <= 1e-12 * norm(product)
    assert again.programs


def test_other_data_share_the_programs():
    risk = risk_of()
    assert risk.on((X, Y)).programs is risk.programs
    assert risk.in_microbatches(6).programs is risk.programs


@pytest.mark.slow
def test_programs_of_ever_other_shapes_are_let_go():
    risk = risk_of()
    for count in range(2, 22):
        other = risk.on((X[:1].expand(count, 3).clone(), Y[:1].expand(count, 2).clone()))
        used(ggn_operator(other, risk.params, mode="traced-split"))
    assert len(risk.programs) == 16


@pytest.mark.slow
def test_programs_of_one_sweep_are_held_on_to():
    x, y = torch.randn(20, 20, 3).double(), torch.randn(20, 20, 2).double()
    ragged = [(x[n, : n + 1], y[n, : n + 1]) for n in range(20)]
    risk = risk_of().on(ragged)
    H = hessian_operator(risk, risk.params, mode="traced-split")
    for _ in range(3):
        used(H)
    assert [p.validator.num_traces for p in risk.programs.values()] == [1] * 20


def test_what_was_used_last_is_kept():
    recent = ProgramCache(2)
    assert [recent.setdefault(key, key.upper()) for key in "abacb"] == ["A", "B", "A", "C", "B"]
    assert list(recent) == ["c", "b"]


@pytest.mark.parametrize(
    "result", [eigsh(torch.eye(3), 2), svds(torch.eye(3), 2), solve(torch.eye(3), torch.ones(3))]
)
def test_results_of_solvers_index_copy_and_print(result):
    again = pickle.loads(pickle.dumps(result))
    for name in result.keys():  # noqa: SIM118
        assert repr(result[name]) == repr(getattr(again, name))
        assert name in repr(result) or result[name] is None
    assert repr(again) == repr(result)
