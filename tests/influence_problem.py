# SPDX-License-Identifier: Apache-2.0
"""A problem with a known minimum, and its curvature by the dense definition."""

import torch
from torch import nn

import hesse
from hesse import Risk

N, Q, DECAY = 23, 4, 0.05
CE = nn.CrossEntropyLoss()
NEAR = {"rtol": 1e-8, "atol": 1e-12}
TIGHT = {"rtol": 1e-11}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(n=N, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(n, generator=g, dtype=torch.float64) > 0).long()
    return x, y + (x[:, 1] > 0.5).long()


X, Y = data()
XQ, YQ = data(Q, 2)
FIRST = Risk(net(), CE, (X, Y), weight_decay=DECAY)
THETA = hesse.minimize(FIRST, FIRST.params, atol=1e-11, rtol=0.0).x
SPACE = hesse.Space.of(THETA)
FLAT = SPACE.flatten(THETA)
NET = net()


def risk_of(sizes=N, loss=CE, decay=DECAY):
    batches = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    return Risk(net(), loss, batches, weight_decay=decay)


def losses(flat, x=X, y=Y):
    z = torch.func.functional_call(NET, SPACE.unflatten(flat), (x,))
    return nn.functional.cross_entropy(z, y, reduction="none")


def jacobian(f, *args):
    return torch.func.jacrev(f)(FLAT, *args)


G, M = jacobian(losses), jacobian(losses, XQ, YQ).T
I = torch.eye(SPACE.n, dtype=torch.float64)


def hessian(weights=None):
    """Of the data part with these weights and 1/N, plus the weight decay."""
    w = torch.ones(N, dtype=torch.float64) if weights is None else weights
    return torch.func.hessian(lambda v: (w * losses(v)).sum() / N)(FLAT) + DECAY * I


def ggn(weights=None):
    w = torch.ones(N, dtype=torch.float64) if weights is None else weights
    J = jacobian(lambda v: torch.func.functional_call(NET, SPACE.unflatten(v), (X,)))
    p = torch.func.functional_call(NET, THETA, (X,)).softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("i,iaj,iab,ibk->jk", w / N, J, S, J) + DECAY * I
