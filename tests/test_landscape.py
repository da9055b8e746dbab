"""Pictures of the loss on a plane: against direct evaluation, and what they refuse."""

import math

import pytest
import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.apps import landscape
from tests.refusals import assert_refused

FLOAT = {"dtype": torch.float64}
CE = nn.CrossEntropyLoss()
A = torch.diag(torch.tensor([5.0, -1.0, 2.0, 0.5], **FLOAT))
G = torch.tensor([0.3, -0.2, 0.1, 0.0], **FLOAT)
ZERO = torch.zeros(4, **FLOAT)
UNITS = torch.eye(4, **FLOAT)


def quadratic(x):
    return 0.5 * x @ A @ x + G @ x + 2.0


@pytest.fixture(scope="module")
def risk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(11, 4, **FLOAT), torch.randint(0, 3, (11,))
    return Risk(model, CE, [(x[:4], y[:4]), (x[4:], y[4:])], weight_decay=0.1)


def test_values_are_those_of_the_risk_and_the_model_touches_them(risk):
    plane = landscape(risk, radius=(0.3, 0.7), grid=5)
    space = hesse.Space.of(risk.params)
    theta = space.flatten(risk.params)
    for i, a in enumerate(plane.a.tolist()):
        for j, b in enumerate(plane.b.tolist()):
            point = theta + plane.directions @ torch.tensor([a, b], **FLOAT)
            assert float(plane.values[i, j]) == pytest.approx(float(risk(space.unflatten(point))))
    H = hesse.hessian_operator(risk).to_dense()
    top = torch.linalg.eigvalsh(H)[-2:].flip(0)
    torch.testing.assert_close(plane.eigenvalues, top, rtol=1e-4, atol=0.0)
    assert plane.a.tolist() == pytest.approx([-0.3, -0.15, 0.0, 0.15, 0.3])
    assert plane.b[-1] == pytest.approx(0.7)
    near = landscape(risk, radius=1e-3, grid=3)
    torch.testing.assert_close(near.values, near.quadratic, rtol=0.0, atol=1e-8)
    assert (near.values - near.values[1, 1]).abs().max() > 1e-7  # no constant would do


def test_the_quadratic_of_a_quadratic_is_itself():
    for directions in ("top", "ends", "gradient", (UNITS[0] + UNITS[1], UNITS[2] * 3)):
        plane = landscape(quadratic, ZERO, directions, radius=2.0, grid=4)
        torch.testing.assert_close(plane.values, plane.quadratic)
    expected = torch.tensor([2.0, 2.0], **FLOAT)  # (5 - 1) / 2, and 2 whatever the length
    torch.testing.assert_close(plane.eigenvalues, expected)
    assert plane.products == 2


def test_directions_are_those_asked_for():
    top, ends, along = (landscape(quadratic, ZERO, d, grid=3) for d in ("top", "ends", "gradient"))
    torch.testing.assert_close(top.eigenvalues, torch.tensor([5.0, 2.0], **FLOAT))
    torch.testing.assert_close(ends.eigenvalues, torch.tensor([5.0, -1.0], **FLOAT))
    torch.testing.assert_close(along.directions[:, 0], G / G.norm())
    torch.testing.assert_close(along.directions.T @ along.directions, torch.eye(2, **FLOAT))
    across = UNITS[0] - (G[0] / G.norm()) * G / G.norm()
    assert abs(float(along.directions[:, 1] @ across)) == pytest.approx(float(across.norm()))


def test_the_radius_is_where_the_quadratic_term_is_as_large_as_the_loss():
    here = torch.full((4,), 3.0, **FLOAT)
    plane = landscape(quadratic, here, (UNITS[0], 2 * UNITS[2]), grid=3)
    value = float(quadratic(here))
    assert float(plane.a[-1]) == pytest.approx(math.sqrt(2 * value / 5.0))
    assert float(plane.b[-1]) == pytest.approx(math.sqrt(2 * value / 2.0) / 2)
    at_zero = landscape(lambda x: 0.5 * x @ A @ x, ZERO, (UNITS[0], UNITS[1]), grid=3)
    assert float(at_zero.a[-1]) == pytest.approx(0.1)
    flat = landscape(lambda x: x[0] ** 2 + 7.0, UNITS[1], (UNITS[0], UNITS[3]), grid=3)
    assert float(flat.a[-1]) == pytest.approx(1.0)  # |theta|, before sqrt(7)
    assert float(flat.b[-1]) == pytest.approx(0.1)


def test_nan_stays_nan():
    plane = landscape(
        lambda x: x[0].sqrt() + x[1] ** 2, UNITS[0] * 0.5, (UNITS[0], UNITS[1]), 1.0, 5
    )
    assert plane.values.isnan().sum() == 5  # a row, where x[0] < 0
    assert plane.quadratic.isfinite().all()


def test_all_points_are_taken_with_a_batch_before_the_next_is_read(risk):
    class Loader:
        sweeps = 0

        def __iter__(self):
            Loader.sweeps += 1
            return iter([(torch.ones(4, 4, **FLOAT), torch.zeros(4).long())] * 2)

    on = risk.on(Loader())
    landscape(on, grid=3, directions=(risk.params, {k: p**2 for k, p in risk.params.items()}))
    few = Loader.sweeps
    landscape(on, grid=9, directions=(risk.params, {k: p**2 for k, p in risk.params.items()}))
    assert Loader.sweeps - few <= few


def test_the_picture_says_the_eigenvalues(risk):
    pytest.importorskip("matplotlib").use("Agg")
    axes = landscape(risk, grid=5).plot(levels=5)
    assert "λ" in axes.get_xlabel()
    assert "landscape" not in axes.get_title()


REFUSED = {
    "no function": (lambda: landscape(3.0, ZERO), "scalar function"),
    "a function without a point": (lambda: landscape(quadratic), "params"),
    "a function of several values": (lambda: landscape(lambda x: x, ZERO), "scalar"),
    "another name": (lambda: landscape(quadratic, ZERO, "random"), "directions"),
    "one direction": (lambda: landscape(quadratic, ZERO, (UNITS[0],)), "two vectors"),
    "a matrix of directions": (lambda: landscape(quadratic, ZERO, UNITS[:2]), "two vectors"),
    "a direction of another size": (
        lambda: landscape(quadratic, ZERO, (UNITS[0], torch.ones(3, **FLOAT))),
        "a direction",
    ),
    "parallel directions": (
        lambda: landscape(quadratic, ZERO, (UNITS[0], -2 * UNITS[0])),
        "span a plane",
    ),
    "a direction of zero": (lambda: landscape(quadratic, ZERO, (UNITS[0], ZERO)), "span a plane"),
    "no gradient": (
        lambda: landscape(lambda x: x @ x, ZERO, "gradient"),
        "not zero",
    ),
    "a radius of zero": (lambda: landscape(quadratic, ZERO, radius=0.0), "radius > 0"),
    "three radii": (lambda: landscape(quadratic, ZERO, radius=(1, 1, 1)), "radius > 0"),
    "two points": (lambda: landscape(quadratic, ZERO, grid=2), "grid"),
    "one variable": (
        lambda: landscape(lambda x: x.sum() ** 2, torch.ones(1, **FLOAT)),
        "two variables",
    ),
    "progress that is no flag": (lambda: landscape(quadratic, ZERO, progress=1), "progress"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])
