# SPDX-License-Identifier: Apache-2.0
"""HessianFree: it descends, resumes bit for bit, and raises for invalid arguments."""

import io
from itertools import pairwise

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, NonFiniteError, RandomnessError
from hesse.optimize import HessianFree
from hesse.risk.risk import Risk


def regression(seed=0, **options):
    torch.manual_seed(seed)
    x = torch.linspace(-2, 2, 60)[:, None]
    model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    risk = Risk(model, nn.MSELoss(), (x, torch.sin(2 * x)))
    return model, risk, HessianFree(risk, **options)


def test_it_is_a_torch_optimiser_and_the_risk_never_rises():
    _, _, optimizer = regression()
    assert isinstance(optimizer, torch.optim.Optimizer)
    losses = [float(optimizer.step()) for _ in range(25)]
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options", [{}, {"damping_rule": "scan"}, {"preconditioner": "diagonal"}], ids=str
)
def test_steps_at_a_minimum_change_nothing(options, dtype):
    """Of two variables, which conjugate gradients find in two iterations and not in twenty."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 50, dtype=dtype)[:, None]
    model = nn.Linear(1, 1).to(dtype)
    optimizer = HessianFree(Risk(model, nn.MSELoss(), (x, 2 * x)), **options)
    for _ in range(45):
        optimizer.step()
    torch.testing.assert_close(model.weight.item(), 2.0, rtol=1e-6, atol=0.0)


@pytest.mark.slow
def test_the_preconditioner_speeds_up_training_of_a_deep_network():
    pytest.importorskip("sklearn")
    from hesse.report.digits import autoencoder, digits, reconstruction_loss

    pixels, ends = digits()[0][:100], {}
    for kind in ("ekfac", "none"):
        risk = Risk(autoencoder(0), reconstruction_loss, (pixels, pixels))
        optimizer = HessianFree(risk, preconditioner=kind)
        for _ in range(22):
            loss = optimizer.step()
        ends[kind] = float(loss)
    # of what lies above the entropy of the pixels, which no network gets below
    entropy = float(reconstruction_loss(pixels.logit(1e-6), pixels))
    assert ends["ekfac"] - entropy < 0.6 * (ends["none"] - entropy)


def test_a_run_resumed_from_its_state_continues_bit_for_bit():
    model, _, optimizer = regression()
    for _ in range(3):
        optimizer.step()
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    expected = [float(optimizer.step()) for _ in range(3)]

    other, _, resumed = regression(seed=5)
    saved.seek(0)
    weights, state = torch.load(saved)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert [float(resumed.step()) for _ in range(3)] == expected
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone():
    runs = []
    for _ in range(2):
        _, _, optimizer = regression()
        state = torch.random.get_rng_state()
        runs.append([float(optimizer.step()) for _ in range(4)])
        assert torch.equal(state, torch.random.get_rng_state())
    assert runs[0] == runs[1]


def test_parameters_changed_by_hand_are_noticed():
    model, risk, optimizer = regression()
    optimizer.step()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    before = float(risk({name: p.detach() for name, p in model.named_parameters()}))
    assert float(optimizer.step()) == pytest.approx(before)


def test_it_steps_on_other_data_and_under_a_scheduler():
    _, _, optimizer = regression()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    x = torch.linspace(-1, 1, 30)[:, None]
    loss = optimizer.step(data=(x, torch.sin(2 * x)))
    schedule.step()
    assert torch.isfinite(loss)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.step()


def test_frozen_parameters_stay_and_tied_ones_stay_tied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[4].weight.requires_grad_(False)
    frozen, x = model[4].weight.clone(), torch.randn(40, 4)
    optimizer = HessianFree(Risk(model, nn.MSELoss(), (x, x)))
    losses = [float(optimizer.step()) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert torch.equal(model[4].weight, frozen)
    assert model[2].weight is model[0].weight


def test_layers_that_are_not_linear_are_trained_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()
    images, labels = torch.randn(32, 1, 8, 8), torch.randint(0, 3, (32,))
    start = model[0].weight.detach().clone()
    optimizer = HessianFree(Risk(model, nn.CrossEntropyLoss(), (images, labels)))
    losses = [float(optimizer.step()) for _ in range(10)]
    assert losses[-1] < 0.1 * losses[0]
    assert not torch.equal(model[0].weight, start)


def test_a_model_without_linear_layers_is_trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Conv2d(2, 1, 3), nn.Flatten())
    images = torch.randn(16, 1, 6, 6)
    optimizer = HessianFree(Risk(model, nn.MSELoss(), (images, images[:, 0, 1:3, 1:3].flatten(1))))
    losses = [float(optimizer.step()) for _ in range(6)]
    assert losses[-1] < 0.5 * losses[0]


def test_batches_add_up_to_the_whole():
    ends = []
    for sizes in ([60], [20, 40], [7] * 8 + [4]):
        torch.manual_seed(0)
        x = torch.linspace(-2, 2, 60, dtype=torch.float64)[:, None]
        model = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1)).double()
        data = list(zip(x.split(sizes), torch.sin(2 * x).split(sizes), strict=True))
        optimizer = HessianFree(Risk(model, nn.MSELoss(), data), preconditioner="none")
        for _ in range(4):
            loss = optimizer.step()
        ends.append(float(loss))
    assert ends[1] == pytest.approx(ends[0], rel=1e-8)
    assert ends[2] == pytest.approx(ends[0], rel=1e-8)


def test_the_damping_stays_within_its_bounds():
    _, _, optimizer = regression(damping=0.5, damping_bounds=(0.4, 0.6))
    for _ in range(10):
        optimizer.step()
        assert 0.4 <= optimizer.param_groups[0]["damping"] <= 0.6


def test_parameters_that_are_not_finite_raise_and_are_left_alone():
    model, _, optimizer = regression()
    with torch.no_grad():
        model[0].weight[0] = float("nan")
    before = model[2].weight.clone()
    with pytest.raises(NonFiniteError, match="risk"):
        optimizer.step()
    assert torch.equal(model[2].weight, before)


def test_invalid_arguments_raise():
    model, risk, optimizer = regression()
    with pytest.raises(ArgumentError, match="closure"):
        optimizer.step(lambda: 0.0)
    for source in (model, [], 3, [3]):
        with pytest.raises(ArgumentError, match=r"Risk of an nn\.Module"):
            HessianFree(source)
    with pytest.raises(ArgumentError, match="closure"):
        HessianFree(model.parameters()).step()
    with pytest.raises(ArgumentError, match="all groups at construction"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    for wrong in ({"lr": 0.0}, {"damping": -1.0}, {"preconditioner": "x"}, {"refresh_every": 0}):
        with pytest.raises(ArgumentError, match=r"(?s)hesse.HessianFree\(risk\).*remedy"):
            HessianFree(risk, **wrong)
    model.append(nn.Dropout())
    with pytest.raises(RandomnessError):
        HessianFree(risk).step()
