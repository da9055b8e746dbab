# SPDX-License-Identifier: Apache-2.0
"""Profile intervals against closed forms and a search on a dense grid."""

import math
import warnings

import pytest
import torch
from torch.func import grad, hessian

import hesse
from hesse.apps import profile
from tests.statistics_problems import (
    DOUBLE,
    FITS,
    TARGETS,
    X,
    dense,
    k,
    logit,
    poisson,
    terms,
)


def test_a_profile_from_a_point_that_is_no_minimum_warns():
    """10 events in a time of 4: the rate is 2.5, and 2 (l(r) - l(1.5)) is no likelihood ratio."""

    def f(rate):
        return 4.0 * rate - 10.0 * rate.log()

    with pytest.warns(UserWarning, match="1.3 standard errors from the minimum"):
        profile(f, torch.tensor(1.5, dtype=DOUBLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        profile(f, torch.tensor(2.5, dtype=DOUBLE))


def test_a_profile_interval_is_that_of_a_search_on_a_dense_grid():
    f, beta, j = terms("logit"), FITS["logit"], 2
    got = profile(f, beta, j)
    rest = [i for i in range(k) if i != j]

    def profiled(value):
        b = beta.clone()
        b[j] = value
        for _ in range(30):  # Newton's method on the others
            g = grad(lambda c: f(c).sum())(b)[rest]
            H = hessian(lambda c: f(c).sum())(b)[rest][:, rest]
            b[rest] -= torch.linalg.solve(H, g)
        return float(2 * (f(b).sum() - f(beta).sum()))

    for end in (got.low, got.high):
        assert abs(profiled(end) - 3.841458820694124) < 1e-6
    assert got.low < got.estimate < got.high
    values = [value for value, _ in got.points]
    assert values == sorted(values)
    V, _ = dense("logit")
    width = 1.959963984540054 * float(V[j, j]) ** 0.5
    assert abs(got.wald[1] - float(beta[j]) - width) < 1e-10


def test_the_profile_of_a_quadratic_is_walds_interval():
    A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
    got = profile(lambda x: x @ A @ x / 2, torch.zeros(2, dtype=DOUBLE), 0, level=0.9)
    error = float(torch.linalg.inv(A)[0, 0]) ** 0.5
    assert abs(got.high - 1.6448536269514722 * error) < 1e-7
    assert abs(got.low + got.high) < 1e-7
    assert abs(got.high - got.wald[1]) < 1e-7


def test_names_of_entries():
    y = TARGETS["poisson"]
    tree = {"slope": FITS["poisson"][1:], "level": FITS["poisson"][0]}

    def f(p):
        return poisson(X @ torch.cat([p["level"].reshape(1), p["slope"]]), y)

    by_name = profile(f, tree, "level")
    assert by_name.name == "level"
    assert abs(by_name.low - profile(terms("poisson"), FITS["poisson"], 0).low) < 1e-6
    assert profile(f, tree, ("slope", 1)).name == "slope[1]"
    assert "wald" in repr(by_name)


def test_a_likelihood_that_levels_off_has_an_infinite_end():
    y = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE)
    x = torch.tensor([-1.0, 0.5, 1.0], dtype=DOUBLE)
    fit = hesse.minimize(lambda b: logit(x * b, y).sum(), torch.zeros((), dtype=DOUBLE)).x
    shallow = profile(lambda b: logit(x * b, y) / 5, fit)
    assert math.isfinite(shallow.low)
    rate = profile(lambda log_rate: log_rate.exp() - 1.0 * log_rate, torch.zeros((), dtype=DOUBLE))
    assert math.isfinite(rate.low)
    flat = profile(lambda u: (u**2) / (1 + u**2), torch.zeros((), dtype=DOUBLE))
    assert (flat.low, flat.high) == (-math.inf, math.inf)
