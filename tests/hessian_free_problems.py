# SPDX-License-Identifier: Apache-2.0
"""Networks, curvatures and a model without gradients beyond a cliff, for tests of `HessianFree`."""

import torch
from torch import nn

import hesse

DOUBLE = torch.float64


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator, dtype=DOUBLE)
    return x, torch.randint(0, 3, (60,), generator=generator)


def risk(model, batches=None):
    return hesse.Risk(model, nn.CrossEntropyLoss(), batches or data())


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def mixed(f, x):
    """A symmetric matrix with eigenvalues of both signs."""
    values = torch.linspace(-1.0, 2.0, 43, dtype=DOUBLE)
    Q, _ = torch.linalg.qr(torch.randn(43, 43, generator=torch.Generator().manual_seed(1)).double())
    return hesse.dense_operator(Q @ torch.diag(values) @ Q.T)


class Cliff(nn.Module):
    """w x, nearly; for large x its gradient is NaN for w below 1/2, where its value is finite."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        beyond = (self.w - 0.5) * (self.w > 0.5)
        outputs = self.w * x
        return outputs + 1e-6 * torch.sqrt(beyond * beyond) if x.abs().max() > 0.9 else outputs


CURVATURES = {
    "ggn": "ggn",
    "hessian": "hessian",
    "ggn_operator": hesse.ggn_operator,
    "hessian_operator": hesse.hessian_operator,
    "exact Fisher": hesse.fisher_operator,
    "sampled Fisher": lambda risk, x: hesse.fisher_operator(
        risk, x, "sampled", samples=5, generator=torch.Generator().manual_seed(0)
    ),
    "empirical Fisher": lambda risk, x: hesse.fisher_operator(risk, x, "empirical"),
    "kfac": hesse.kfac_operator,
    "ekfac": hesse.ekfac_operator,
    "diagonal": lambda risk, x: hesse.diagonal_operator(
        hesse.ggn_operator(risk, x).to_dense().diagonal()
    ),
    "identity": lambda risk, x: hesse.identity_operator(43, DOUBLE),
    "indefinite": mixed,
}
RULES = ["scan", "levenberg-marquardt"]
