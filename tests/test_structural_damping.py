# SPDX-License-Identifier: Apache-2.0
"""Structural damping of `HessianFree`: its matrix and steps by their definition, and whole runs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import hesse
from hesse.optimize import HessianFree
from hesse.optimize.current_point import CurrentPoint
from hesse.optimize.point import Counts, Objective
from hesse.optimize.structural_damping import StructuralDamping
from hesse.vectors.space import Space
from tests.refusals import assert_refused

DOUBLE = torch.float64
LENGTHS = torch.tensor([4, 2, 3, 1, 4])


class Layer(nn.Module):
    """A recurrent layer, of which the last states are read."""

    def __init__(self, kind=nn.RNN):
        super().__init__()
        self.rnn, self.out = kind(2, 3, batch_first=True), nn.Linear(3, 2)

    def states(self, x, lengths):
        return self.rnn(x)[0]

    def forward(self, x, lengths):
        return self.out(self.states(x, lengths)[:, -1])


class Packed(Layer):
    """The same on packed sequences."""

    def states(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[0].data

    def forward(self, x, lengths):
        return self.out(self.states(x, lengths)[: len(x)])


class Cell(Layer):
    """A cell that is called at every time."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRUCell(2, 3)

    def states(self, x, lengths):
        states = [self.rnn(x[:, 0])]
        for t in range(1, x.shape[1]):
            states.append(self.rnn(x[:, t], states[-1]))
        return torch.stack(states, dim=1)


class Checkpointed(Layer):
    """A part runs again in the backward pass, so that a copy of the model is called."""

    def forward(self, x, lengths):
        return checkpoint(self.out, self.states(x, lengths)[:, -1], use_reentrant=False)


MODELS = {"rnn": Layer, "lstm": lambda: Layer(nn.LSTM), "packed": Packed, "cells": Cell,
          "checkpointed": Checkpointed}  # fmt: skip


def network(name="rnn", seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().double()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 2, generator=generator, dtype=DOUBLE)
    return (x, LENGTHS), torch.randn(5, 2, generator=generator, dtype=DOUBLE)


def risk_of(model, sizes=(5,), loss=None):
    """Of all data in batches of these sizes."""
    (x, lengths), y = data()
    parts = zip(x.split(sizes), lengths.split(sizes), y.split(sizes), strict=True)
    batches = [((a, b), c) for a, b, c in parts]
    return hesse.Risk(model, loss or nn.MSELoss(), batches, weight_decay=0.1)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def dense_states(model):
    """J_h' J_h, by a backward pass for every hidden state."""
    (x, lengths), _ = data()
    parameters = list(model.parameters())
    rows = []
    for h in model.states(x, lengths).flatten():
        parts = torch.autograd.grad(h, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        rows.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                               for g, p in pairs]))  # fmt: skip
    J = torch.stack(rows)
    return J.T @ J


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("name", "curvature", "mode"),
    [
        ("rnn", "ggn", "traced-split"),
        ("packed", "hessian", "retained-graph"),
        ("lstm", "ggn", "retained-graph"),
        ("cells", "hessian", "traced-split"),
        ("checkpointed", "ggn", "retained-graph"),
    ],
)
def test_the_matrix_is_its_definition(name, curvature, mode):
    """On uneven batches; mu lambda = 0.5 and another one, by the same programs."""
    model = network(name)
    risk, n = risk_of(model, (3, 2)), 5
    make = hesse.ggn_operator if curvature == "ggn" else hesse.hessian_operator
    space, plain = Space.of(risk.params), make(risk, risk.params).to_dense()
    current = CurrentPoint(make, space, Counts(), mode)
    structural = StructuralDamping.of(2.0, curvature, risk)
    objective = Objective(make(risk, risk.params))
    point = objective.start(flat(model))
    for damping in (0.25, 3.0):
        A = structural.at(risk, point, damping, current).to_dense()
        torch.testing.assert_close(
            A, plain + 2.0 * damping * dense_states(model) / n, rtol=1e-10, atol=1e-11
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_the_states_are_added_up_where_the_loss_is():
    model = network()
    risk = risk_of(model, (3, 2), nn.MSELoss(reduction="sum"))
    point = Objective(hesse.ggn_operator(risk, risk.params)).start(flat(model))
    current = CurrentPoint(hesse.ggn_operator, point.space, Counts(), "retained-graph")
    structural = StructuralDamping.of({model.rnn: 1.5, model.out: 0.0}, "ggn", risk)
    A = structural.at(risk, point, 2.0, current).to_dense()
    plain = hesse.ggn_operator(risk, risk.params).to_dense()
    torch.testing.assert_close(A - plain, 3.0 * dense_states(model), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("iterations", [1, 200])
def test_a_step_is_that_of_the_damped_matrix(iterations):
    """After one iteration of CG along the gradient, after many the solution; lambda by rho."""
    model = network()
    risk, mu, damping, x = risk_of(model), 0.7, 0.4, flat(model)
    G = hesse.ggn_operator(risk, risk.params)
    g, value, G = G.flat_gradient, float(G.value), G.to_dense()
    A = G + mu * damping * dense_states(model) / 5 + damping * torch.eye(len(g), dtype=DOUBLE)
    p = -torch.linalg.solve(A, g) if iterations > 1 else -(g @ g) / (g @ A @ g) * g
    optimizer = HessianFree(
        risk, damping=damping, structural_damping=mu, max_cg_iterations=iterations,
        preconditioner="none",
    )  # fmt: skip
    optimizer.step()
    torch.testing.assert_close(flat(model) - x, p, rtol=1e-3 if iterations > 1 else 1e-9, atol=1e-6)
    p = flat(model) - x
    fall = value - float(risk({name: p.detach() for name, p in model.named_parameters()}))
    rho = fall / -float(g @ p + 0.5 * p @ G @ p)
    factor = 1.5 if rho < 0.25 else 2 / 3 if rho > 0.75 else 1.0
    assert optimizer.param_groups[0]["damping"] == pytest.approx(factor * damping)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["levenberg-marquardt", "scan"])
def test_a_run_goes_on_from_its_file_to_the_same_bits(rule, tmp_path, monkeypatch):
    monkeypatch.setattr("hesse.checkpoint._PAUSE", 0)  # save after every step
    options = {"structural_damping": 0.5, "damping_rule": rule}
    whole, other = network(), network()
    expected, plain = HessianFree(risk_of(whole), **options), HessianFree(risk_of(other))
    losses = [float(expected.step()) for _ in range(6)]
    for _ in range(6):
        plain.step()
    assert losses[-1] < losses[0]
    assert not torch.equal(flat(whole), flat(other))
    for seed, steps in enumerate((2, 4)):
        part = network(seed=seed)  # the parameters come from the file
        optimizer = HessianFree(risk_of(part), checkpoint=tmp_path / "run", **options)
        for _ in range(steps):
            optimizer.step()
    assert torch.equal(flat(part), flat(whole))
    assert optimizer.counts.nhev == expected.counts.nhev
    again = {"checkpoint": tmp_path / "run", **options, "structural_damping": 0.25}
    assert_refused(lambda: HessianFree(risk_of(part), **again), r"structural_damping = \[0.25\]")


def test_no_weight_changes_no_bit():
    models = [network(), network()]
    for model, weight in zip(models, ({}, {models[1].rnn: 0.0}), strict=True):
        optimizer = HessianFree(risk_of(model), structural_damping=weight, mode="retained-graph")
        for _ in range(3):
            optimizer.step()
    assert torch.equal(*map(flat, models))


@pytest.mark.slow
def test_a_closure_gives_the_same_bits_as_a_risk():
    model, twin = network("cells"), network("cells")
    (inputs, y), mode = data(), "retained-graph"
    risk = hesse.Risk(model, nn.MSELoss(), (inputs, y))
    by_risk = HessianFree(risk, structural_damping=0.3, mode=mode)
    by_closure = HessianFree(twin.parameters(), structural_damping={twin.rnn: 0.3})

    def closure():
        outputs = twin(*inputs)
        return outputs, mse_loss(outputs, y)

    for _ in range(3):
        by_risk.step()
        by_closure.step(closure)
    assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("limit", [3, 4, 21])
def test_the_limit_of_products_is_kept(limit):
    optimizer = HessianFree(
        risk_of(network()), structural_damping=1.0, max_products=limit, mode="retained-graph"
    )
    for _ in range(5):
        optimizer.step()
    assert optimizer.counts.nhev <= limit
    assert optimizer.status is hesse.Status.MAX_PRODUCTS


def test_what_it_cannot_be_added_to_is_refused():
    model = network()
    risk, plain = risk_of(model), nn.Linear(2, 1)
    feed_forward = hesse.Risk(plain, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    for source, weight, says in (
        (risk, -1.0, "at least 0"),
        (risk, float("nan"), "at least 0"),
        (risk, {model.rnn: "much"}, "at least 0"),
        (risk, {copy.deepcopy(model.rnn): 1.0}, "of another model"),
        (risk, {"rnn": 1.0}, "modules of the model"),
        (feed_forward, 1.0, "a model with recurrent layers"),
        (model.parameters(), 1.0, "parameters without a model"),
    ):
        assert_refused(lambda s=source, w=weight: HessianFree(s, structural_damping=w), says)
    options = {"structural_damping": 1.0, "curvature": hesse.fisher_operator}
    assert_refused(lambda: HessianFree(risk, **options), 'curvature="ggn" or "hessian"')


def test_modules_without_states_are_refused_at_the_first_step():
    model = network()
    model.unused, before = nn.RNN(2, 3).double(), flat(model)
    (x, lengths), y = data()
    risk = hesse.Risk(model, nn.MSELoss(), ((x, lengths), y))
    optimizer = HessianFree(risk, structural_damping=0.1)
    assert_refused(optimizer.step, "a RNN that it does not call")
    assert torch.equal(flat(model)[: len(before)], before)
    assert not any(module._forward_hooks for module in model.modules())
