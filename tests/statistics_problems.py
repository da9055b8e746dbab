# SPDX-License-Identifier: Apache-2.0
"""Regressions of three likelihoods, their fits, and their information by definition."""

import torch
from torch.func import hessian

import hesse

DOUBLE = torch.float64
n, k = 200, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def design():
    X = torch.randn(n, k, dtype=DOUBLE, generator=seeded())
    X[:, 0] = 1.0
    return X


X = design()
BETA = torch.tensor([0.3, -0.5, 0.4, 0.2], dtype=DOUBLE)
ETA = X @ BETA
UNIFORM = torch.rand(n, dtype=DOUBLE, generator=seeded(1))
CLUSTERS = torch.arange(n) // 10


def logit(eta, y):
    return torch.nn.functional.softplus(eta) - y * eta


def poisson(eta, y):
    return eta.exp() - y * eta


def probit(eta, y):
    return -torch.special.log_ndtr((2 * y - 1) * eta)


TARGETS = {
    "logit": (ETA.sigmoid() > UNIFORM).double(),
    "poisson": torch.poisson(ETA.exp(), generator=seeded(2)),
    "probit": (torch.special.ndtr(ETA) > UNIFORM).double(),
}
LOSSES = {"logit": logit, "poisson": poisson, "probit": probit}


def terms(name):
    return lambda beta: LOSSES[name](X @ beta, TARGETS[name])


def estimate(name):
    f = terms(name)
    zero = torch.zeros(k, dtype=DOUBLE)
    return hesse.minimize(lambda beta: f(beta).sum(), zero, rtol=0.0, atol=1e-11).x


FITS = {name: estimate(name) for name in LOSSES}


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def dense(name):
    """The inverse information and the scores, by definition."""
    beta, f = FITS[name], terms(name)
    V = torch.linalg.inv(hessian(lambda b: f(b).sum())(beta))
    return V, torch.autograd.functional.jacobian(f, beta)
