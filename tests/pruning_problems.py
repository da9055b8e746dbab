"""Risks to prune, a quadratic one and a classifier; the minimum with a mask, by dense algebra."""

import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.apps import Repair

EXACT = Repair(rtol=1e-12)
NEAR = {"rtol": 1e-8, "atol": 1e-10}
G = torch.Generator().manual_seed(0)
X = torch.randn(17, 8, generator=G, dtype=torch.float64) @ torch.randn(
    8, 8, generator=G, dtype=torch.float64
)
Y = torch.randn(17, 3, generator=G, dtype=torch.float64)
RAGGED = list(zip(X.split(6), Y.split(6), strict=True))


def quadratic():
    """A risk that is a quadratic function, over ragged batches, and its weights."""
    torch.manual_seed(1)
    model = nn.Linear(8, 3, bias=False).double()
    return Risk(model, nn.MSELoss(), RAGGED, weight_decay=0.1)


LINEAR = quadratic()
BEST = hesse.minimize(LINEAR, LINEAR.params, rtol=0.0, atol=1e-12).x
H = hesse.hessian_operator(LINEAR, BEST).to_dense()
W = BEST["weight"].reshape(-1)


def network():
    """A classifier, its calibration data in ragged batches, and its trained parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    risk = Risk(
        model,
        nn.CrossEntropyLoss(),
        list(zip(X.split(6), y.split(6), strict=True)),
        weight_decay=0.01,
    )
    return risk, hesse.minimize(risk, risk.params, rtol=0.0, atol=1e-8, max_iterations=50).x


NETWORK, TRAINED = network()


def constrained_minimum(A, g, w, keep):
    """min g'd + d'Ad/2 with d = -w outside of the mask, by its KKT system; d and the minimum."""
    E = torch.eye(len(w)).to(w)[~keep]
    m = len(E)
    kkt = torch.cat([torch.cat([A, E.T], 1), torch.cat([E, torch.zeros(m, m).to(w)], 1)])
    d = torch.linalg.solve(kkt, torch.cat([-g, -w[~keep]]))[: len(w)]
    return d, float(g @ d + 0.5 * d @ A @ d)
