# SPDX-License-Identifier: Apache-2.0
"""`HessianFree(params)` in a training loop: `step(closure)` is a step on the closure's risk."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import hesse
from hesse.errors import ArgumentError, DataError, FunctionError, RandomnessError
from hesse.optimize import HessianFree

DOUBLE = torch.float64


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def data(n=50):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, 3, (n,), generator=generator)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def closure_of(model, x, y):
    def closure():
        outputs = model(x)
        return outputs, cross_entropy(outputs, y)

    return closure


@pytest.mark.some_cases(5)
@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("mode", ["retained-graph", "traced-split"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preconditioner": "none", "damping_rule": "levenberg-marquardt"},
        {"curvature": "hessian", "preconditioner": "none", "damping_rule": "scan"},
        {"curvature": hesse.fisher_operator},
    ],
)
def test_a_closure_gives_the_same_bits_as_a_risk(options, mode):
    """With EK-FAC, whose examples are found in another way, too."""
    (x, y), model, twin = data(), network(), network()
    by_risk = HessianFree(
        hesse.Risk(model, nn.CrossEntropyLoss(), (x, y)), mode="retained-graph", **options
    )
    by_closure = HessianFree(twin.parameters(), mode=mode, **options)
    closure = closure_of(twin, x, y)
    for _ in range(5):
        assert float(by_risk.step()) == pytest.approx(float(by_closure.step(closure)), rel=1e-12)
        if mode == "retained-graph":
            assert torch.equal(flat(model), flat(twin))
        else:
            torch.testing.assert_close(flat(model), flat(twin), rtol=1e-7, atol=1e-9)


def test_other_batches_in_every_step_are_those_of_a_risk_on_them():
    (x, y), model, twin = data(), network(), network()
    risk = hesse.Risk(model, nn.CrossEntropyLoss(), (x, y))
    by_risk = HessianFree(risk, mode="retained-graph")
    by_closure = HessianFree(twin.parameters())
    # After three points the factors of the fourth could come from the program, unchecked.
    for part in (*[slice(0, 30)] * 3, slice(20, 50), slice(30, 50), slice(10, 40)):
        by_risk.step(data=(x[part], y[part]))
        by_closure.step(closure_of(twin, x[part], y[part]))
        torch.testing.assert_close(flat(model), flat(twin), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("alone", [False, True])
def test_one_closure_whose_batch_changes_is_evaluated_anew(alone):
    """Batches of other sizes too, with the loss alone or with the outputs."""
    (x, y), model, twin = data(), network(), network()
    batch = [x[:30], y[:30]]

    def closure():
        outputs = model(batch[0])
        loss = cross_entropy(outputs, batch[1])
        return loss if alone else (outputs, loss)

    kind = "kfac" if alone else "ekfac"  # EK-FAC does not know the examples of a loss alone
    one, other = (HessianFree(m.parameters(), preconditioner=kind) for m in (model, twin))
    for part in (slice(0, 30), slice(20, 50), slice(0, 50), slice(0, 7)):
        batch[:] = x[part], y[part]
        one.step(closure)
        other.step(closure_of(twin, *batch))
        assert torch.equal(flat(model), flat(twin))


@pytest.mark.parametrize("preconditioner", ["none", "ekfac"])
def test_a_closure_of_the_common_kind_works_as_it_is(preconditioner):
    """It calls zero_grad and backward, and returns the loss alone."""
    (x, y), model, twin = data(), network(), network()
    optimizer = HessianFree(model.parameters(), preconditioner=preconditioner)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        return loss

    pair = HessianFree(twin.parameters(), preconditioner=preconditioner)
    for _ in range(4):
        optimizer.step(closure)
        pair.step(lambda: cross_entropy(twin(x), y))
    torch.testing.assert_close(flat(model), flat(twin), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_outputs_may_be_several_and_in_a_tree():
    x, _ = data()
    model = network()
    twin = copy.deepcopy(model)

    def closure():
        hidden = model[0](x).tanh()
        outputs = {"hidden": hidden, "out": model[2](hidden)}
        loss = mse_loss(outputs["out"], x[:, :3]) + 0.1 * outputs["hidden"].square().mean()
        return outputs, loss

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = twin

        def forward(self, x):
            hidden = self.net[0](x).tanh()
            return {"hidden": hidden, "out": self.net[2](hidden)}

    def loss(outputs, targets):
        return mse_loss(outputs["out"], targets) + 0.1 * outputs["hidden"].square().mean()

    by_closure = HessianFree(model.parameters(), preconditioner="none")
    by_risk = HessianFree(
        hesse.Risk(Both(), loss, (x, x[:, :3])), preconditioner="none", mode="retained-graph"
    )
    for _ in range(3):
        by_closure.step(closure)
        by_risk.step()
        torch.testing.assert_close(flat(model), flat(twin), rtol=1e-10, atol=1e-12)


def test_groups_have_rates_of_their_own_and_names():
    (x, y), model = data(), network()
    groups = [
        {"params": list(model[0].named_parameters()), "lr": 0.5},
        {"params": list(model[2].named_parameters()), "lr": 0.0},
    ]
    groups[1]["params"] = [(f"last.{name}", p) for name, p in groups[1]["params"]]
    optimizer = HessianFree(groups, max_cg_iterations=1, preconditioner="none")
    kept, moving = model[2].weight.detach().clone(), model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.step(closure_of(model, x, y))
    assert torch.equal(model[2].weight, kept)
    assert not torch.equal(model[0].weight, moving)


def test_lr_multiplies_the_step_and_zero_is_none():
    steps = []
    for lr in (1.0, 0.25):
        (x, y), model = data(), network()
        bounds = {"damping": 1.0, "damping_bounds": (1.0, 1.0)}
        optimizer = HessianFree(model.parameters(), lr=lr, **bounds)
        before = flat(model)
        optimizer.step(closure_of(model, x, y))
        steps.append(flat(model) - before)
    torch.testing.assert_close(steps[1], 0.25 * steps[0])
    optimizer.param_groups[0]["lr"] = 0.0
    before, damping = flat(model), optimizer.param_groups[0]["damping"]
    optimizer.step(closure_of(model, x, y))
    assert torch.equal(flat(model), before)
    assert optimizer.param_groups[0]["damping"] == damping


def test_a_scheduler_acts_on_the_rate():
    (x, y), model = data(), network()
    optimizer = HessianFree(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    losses = []
    for _ in range(4):
        losses.append(float(optimizer.step(closure_of(model, x, y))))
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("options", [{}, {"refresh_every": 2}, {"preconditioner": "nystrom"}])
def test_a_run_goes_on_from_its_state_to_the_same_bits(options):
    (x, y), model, other = data(), network(), network(1)
    optimizer = HessianFree(model.parameters(), **options)
    for _ in range(3):
        optimizer.step(closure_of(model, x, y))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    resumed = HessianFree(other.parameters(), **options)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    for _ in range(3):
        optimizer.step(closure_of(model, x, y))
        resumed.step(closure_of(other, x, y))
        assert torch.equal(flat(model), flat(other))


def test_parameters_that_are_left_out_stay():
    (x, y), model = data(), network()
    kept = model[0].weight.detach().clone()
    optimizer = HessianFree(model[2].parameters())
    losses = [float(optimizer.step(closure_of(model, x, y))) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert torch.equal(model[0].weight, kept)


def test_convolutions_and_recurrent_cells_see_the_given_parameters():
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"c": nn.Conv1d(2, 3, 3), "l": nn.LSTM(3, 4, batch_first=True), "o": nn.Linear(4, 2)}
    )
    x, y = torch.randn(20, 2, 8), torch.randn(20, 2)

    def closure():
        hidden, _ = model["l"](model["c"](x).transpose(1, 2))
        outputs = model["o"](hidden[:, -1])
        return outputs, mse_loss(outputs, y)

    optimizer = HessianFree(model.parameters(), preconditioner="none")
    losses = [float(optimizer.step(closure)) for _ in range(6)]
    assert losses[-1] < 0.7 * losses[0]


def test_what_a_closure_must_not_do_is_said():
    (x, y), model = data(), network()

    def optimizer(**options):
        return HessianFree(model.parameters(), **options)

    before = flat(model)
    with pytest.raises(ArgumentError, match=r"(?s)HessianFree\.step\(\).*\(outputs, loss\)"):
        optimizer().step(lambda: model(x))
    with pytest.raises(RandomnessError):
        optimizer().step(lambda: (lambda z: (z, mse_loss(z, torch.randn_like(z))))(model(x)))
    with pytest.raises(FunctionError, match="depends on the parameters by another way"):
        optimizer(preconditioner="none").step(
            lambda: (lambda z: (z, cross_entropy(z, y) + model[0].weight.square().sum()))(model(x))
        )
    for name in ("curvature", "preconditioner"):
        with pytest.raises(DataError, match=r"(?s)a closure.*whole batch.*hesse\.Risk"):
            optimizer(**{name: hesse.kfac_operator}).step(closure_of(model, x, y))
    with pytest.raises(ArgumentError, match="closure"):
        optimizer().step()
    with pytest.raises(ArgumentError, match="closure"):
        optimizer().step(data=(x, y))
    assert torch.equal(flat(model), before)


# -- Copies ----------------------------------------------------------------------------------------


@pytest.mark.some_cases(4)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("form", ["groups", "named", "risk"])
def test_a_copy_goes_on_to_the_same_bits(form, duplicate, tmp_path):
    (x, y), model = data(), network()
    own = {
        "groups": lambda: [{"params": layer.parameters(), "lr": 0.7} for layer in model[::2]],
        "named": lambda: model.named_parameters(),
        "risk": lambda: hesse.Risk(model, nn.CrossEntropyLoss(), (x, y)),
    }[form]()
    options = {"refresh_every": 2, "max_cg_iterations": 7, "mode": "retained-graph"}
    if form == "risk":
        options["checkpoint"] = tmp_path / "run"
    pair = model, HessianFree(own, curvature="hessian", damping=0.3, **options)

    def step(pair):
        model, optimizer = pair
        return float(optimizer.step(*(() if form == "risk" else (closure_of(model, x, y),))))

    for _ in range(3):
        step(pair)
    other = duplicate(pair)
    assert other[1].param_groups[0]["params"][0] is other[0][0].weight
    (tmp_path / "run").unlink(missing_ok=True)
    for _ in range(3):
        assert step(other) == step(pair)
    assert torch.equal(flat(other[0]), flat(model))
    assert other[1].counts.nhev == pair[1].counts.nhev
    assert other[1].status is pair[1].status
    other[1].load_state_dict(pair[1].state_dict())
    assert step(other) == step(pair)


# -- Frozen parameters -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parameters", "named", "groups"])
def test_frozen_parameters_stay_as_they_are(form):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    x, y = torch.randn(8, 3).double(), torch.arange(8) % 3
    given = {
        "parameters": lambda: model.parameters(),
        "named": lambda: model.named_parameters(),
        "groups": lambda: [{"params": layer.parameters(), "lr": 1.0} for layer in model[::2]],
    }[form]()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = HessianFree(given)
    losses = [float(optimizer.step(lambda: cross_entropy(model(x), y))) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["2.weight"]


@pytest.mark.parametrize("form", ["parameters", "named", "groups", "risk"])
def test_parameters_that_are_released_later_are_refused(form):
    """Gradual unfreezing: a step that passed over them would train the others alone in silence."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    x, y = torch.randn(8, 3).double(), torch.arange(8) % 3
    given = {
        "parameters": lambda: model.parameters(),
        "named": lambda: model.named_parameters(),
        "groups": lambda: [{"params": layer.parameters()} for layer in model[::2]],
        "risk": lambda: hesse.Risk(model, nn.CrossEntropyLoss(), (x, y)),
    }[form]()
    optimizer, before = HessianFree(given), flat(model)
    model[0].weight.requires_grad_(True)
    closure = () if form == "risk" else (lambda: cross_entropy(model(x), y),)
    with pytest.raises(ArgumentError, match=r"one of shape \(4, 3\) released since"):
        optimizer.step(*closure)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    "option", [{"weight_decay": 0.1}, {"damping": 0.5}, {"max_cg_iterations": 3}, {"momentum": 0.9}]
)
def test_a_group_has_no_options_that_no_step_heeds(option):
    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.5, "name": "first"}]
    HessianFree([*groups, {"params": model[2].parameters(), "weight_decay": 0.0}])
    (name, value), *_ = option.items()
    with pytest.raises(ArgumentError, match=f"(?s)differ in lr alone.*got: *{name}={value}\n"):
        HessianFree([*groups, {"params": model[2].parameters(), **option}])


def test_a_penalty_on_parameters_that_are_outputs_is_that_of_a_risk():
    (x, y), model, same = data(), network(), network()
    same.load_state_dict(model.state_dict())
    optimizer = HessianFree(model.parameters(), preconditioner="none")
    risk = hesse.Risk(same, nn.CrossEntropyLoss(), (x, y), weight_decay=0.02)
    of_risk = HessianFree(risk, preconditioner="none")

    def closure():
        z, params = model(x), [p.view_as(p) for p in model.parameters()]
        return (z, params), cross_entropy(z, y) + 0.01 * sum(p.square().sum() for p in params)

    losses = [float(optimizer.step(closure)) for _ in range(4)]
    assert losses == pytest.approx([float(of_risk.step()) for _ in range(4)], rel=1e-6)


def test_parameters_that_are_frozen_later_are_refused():
    model = nn.Linear(3, 3)
    x, y = torch.randn(8, 3), torch.arange(8) % 3
    optimizer = HessianFree(model.named_parameters())
    model.bias.requires_grad_(False)
    with pytest.raises(ArgumentError, match="'bias' frozen since"):
        optimizer.step(lambda: cross_entropy(model(x), y))
    with pytest.raises(ArgumentError, match="none requires a gradient"):
        HessianFree([model.bias])
