# SPDX-License-Identifier: Apache-2.0
"""Risks whose examples are weighted, and sums over single examples."""

import torch
from torch import nn
from torch.nn import functional as F

from hesse import (
    Risk,
)

DOUBLE = torch.float64
V = 4
N = 7


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, 3), nn.Linear(3, V)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens).cumsum(1)))


class OwnLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Sequences()

    def forward(self, ids, labels):
        z = self.inner(ids)
        return {"loss": F.cross_entropy(z.transpose(1, 2), labels), "logits": z}


def mlp():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, V))


def x():
    return torch.randn(N, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def y(*shape):
    return torch.randint(0, V, shape or (N,), generator=torch.Generator().manual_seed(2))


def padded():
    targets = y(N, 3)
    targets[2, 1:] = -100
    return targets


def time_first(z, targets):
    return F.cross_entropy(z.transpose(0, 1).reshape(-1, V), targets.t().reshape(-1))


def masked(z, targets):
    mask = (targets > 0).double()
    rows = F.cross_entropy(z, targets, reduction="none")
    return (rows * mask).sum() / mask.sum()


W = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=DOUBLE)
# name -> (model, loss, (inputs, targets))
RISKS = {
    "mean": (mlp, nn.CrossEntropyLoss(), (x(), y())),
    "class weights": (mlp, nn.CrossEntropyLoss(W, ignore_index=1, label_smoothing=0.1), (x(), y())),
    "sum": (mlp, nn.MSELoss(reduction="sum"), (x(), torch.ones(N, V, dtype=DOUBLE))),
    "huber": (mlp, nn.SmoothL1Loss(), (x(), torch.ones(N, V, dtype=DOUBLE))),
    "bernoulli": (mlp, nn.BCEWithLogitsLoss(pos_weight=W), (x(), y(N, V) % 2 + 0.0 * W)),
    "tokens": (Sequences, time_first, (y(N, 3), padded())),
    "masked": (mlp, masked, (x(), y())),
}


def risk(name, parts=(N,), **options):
    model, loss, (inputs, targets) = RISKS[name]
    torch.manual_seed(0)
    batches = list(zip(inputs.split(parts), targets.split(parts), strict=True))
    return Risk(model().double(), loss, batches, **options)


def flat(tree):
    return torch.cat([part.reshape(-1) for part in tree.values()])


def contributions(r):
    """R_n as functions of the parameters: what is lost of R where the targets of n are cut out.

    By finite arithmetic: the rows of example n, over what the mean of the whole divides by.
    """
    ((_, batch),) = r.batches()
    inputs, targets = batch.inputs, batch.targets
    loss = r.loss

    def part(params, n):
        z = torch.func.functional_call(r.model, params, (inputs[n : n + 1],))
        t = targets[n : n + 1]
        if isinstance(loss, nn.CrossEntropyLoss):
            w = torch.ones(V).double() if loss.weight is None else loss.weight
            divisor = (w[targets] * (targets != loss.ignore_index)).sum()
            rows = F.cross_entropy(
                z, t, loss.weight, ignore_index=loss.ignore_index, reduction="sum",
                label_smoothing=loss.label_smoothing,
            )  # fmt: skip
            return rows / divisor
        if loss is time_first:
            return F.cross_entropy(z[0], t[0], reduction="sum") / (targets != -100).sum()
        if loss is masked:
            return F.cross_entropy(z, t, reduction="sum") * (t > 0).sum() / (targets > 0).sum()
        if loss.reduction == "sum":
            return loss(z, t)
        return loss(z, t) / N

    return part


WEIGHTS = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.5, 0.25, 3.0], dtype=DOUBLE)
