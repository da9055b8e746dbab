# SPDX-License-Identifier: Apache-2.0
"""Responses of minima to parameters: differences of minimisations, closed forms."""

import warnings

import pytest
import torch

import hesse
from hesse.apps import response
from tests.clusters import DOUBLE, MINIMA, distances2, pulled


def test_the_response_of_a_cluster_equals_differences():
    q, h = torch.tensor([1.0, 0.3], dtype=DOUBLE), 1e-4

    def at(q):
        f = lambda x: pulled(x, q)  # noqa: E731
        return hesse.minimize(f, MINIMA[7].x, "trust-cg", rtol=0.0, atol=1e-11)

    base = at(q)
    got = response(pulled, base.x, q)
    assert got.derivative.shape == (7, 3, 2)
    step = h * torch.eye(2, dtype=DOUBLE)
    for j in range(2):
        high, low = at(q + step[j]), at(q - step[j])
        moved = (distances2(high.x).sqrt() - distances2(low.x).sqrt()) / (2 * h)
        linear = torch.func.jvp(
            lambda x: distances2(x).sqrt(), (base.x,), (got.derivative[..., j].contiguous(),)
        )[1]
        torch.testing.assert_close(linear, moved, rtol=1e-5, atol=1e-8)
        assert abs(float(got.slope[j]) - (high.fun - low.fun) / (2 * h)) < 1e-7
        bend = (high.fun - 2 * base.fun + low.fun) / h**2
        assert abs(float(got.second[j, j]) - bend) < 1e-4
    torch.testing.assert_close(got.second, got.second.T)


def test_the_response_of_oscillators_in_a_field():
    """A polarisability: -d2E/dq2 of charges on springs is the sum of 1 / k."""
    k = torch.tensor([2.0, 5.0, 10.0], dtype=DOUBLE)

    def f(x, field):
        return (k * x["shift"] ** 2).sum() / 2 - field * x["shift"].sum()

    field = torch.tensor(0.3, dtype=DOUBLE)
    got = response(f, {"shift": field / k}, field)
    torch.testing.assert_close(got.derivative["shift"], 1 / k)
    torch.testing.assert_close(-got.second[0, 0], (1 / k).sum())
    torch.testing.assert_close(-got.slope, field * (1 / k).sum())


def test_a_response_away_from_the_minimum_warns():
    """x^4 / 4 - q x + x^2 / 2 at 1.5 times its minimum: the second derivative is another."""

    def energy(x, q):
        return (x**4 / 4 + x**2 / 2 - q * x).sum()

    q = torch.tensor(10.0, dtype=DOUBLE)
    x = torch.tensor([2.0, 2.0], dtype=DOUBLE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = response(energy, x, q)
        response(energy, x + 1e-4, q)
    torch.testing.assert_close(got.second[0, 0], torch.tensor(-2 / 13.0, dtype=DOUBLE))
    with pytest.warns(UserWarning, match=r"not a stationary point: \|grad f\| = 28"):
        response(energy, 1.5 * x, q)
