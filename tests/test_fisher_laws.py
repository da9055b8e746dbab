# SPDX-License-Identifier: Apache-2.0
"""Laws of Fisher matrices, on random losses and shapes; what they go through unharmed."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesse import (
    Risk,
    eigsh,
    fisher_operator,
    ggn_operator,
    gradient_covariance_operator,
    identity_operator,
    solve,
)

DOUBLE = torch.float64


def network(classes, *, tied=False):
    layers = [nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, classes)]
    if tied:
        layers[2] = layers[0]
    return nn.Sequential(*layers).double()


def problem(kind, reduction, rows, classes):
    """A loss and its targets."""
    if kind == "classes":
        return nn.CrossEntropyLoss(reduction=reduction), torch.randint(0, classes, (rows,))
    if kind == "smoothed":
        weight = torch.rand(classes, dtype=DOUBLE) + 0.1
        loss = nn.CrossEntropyLoss(weight, label_smoothing=0.3, reduction=reduction)
        return loss, torch.randint(0, classes, (rows,))
    if kind == "soft":
        soft = torch.rand(rows, classes, dtype=DOUBLE).softmax(1)
        return nn.CrossEntropyLoss(reduction=reduction), soft
    if kind == "bits":
        bits = torch.randint(0, 2, (rows, classes)).double()
        return nn.BCEWithLogitsLoss(reduction=reduction), bits
    if kind == "counts":
        return nn.PoissonNLLLoss(reduction=reduction), torch.randint(0, 4, (rows, classes)).double()
    return nn.MSELoss(reduction=reduction), torch.randn(rows, classes, dtype=DOUBLE)


KINDS = ["classes", "smoothed", "soft", "bits", "counts", "values"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2)
@given(
    st.sampled_from(["mean", "sum"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(2, 4),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_laws(kind, reduction, sizes, classes, tied, seed):
    torch.manual_seed(seed)
    model = network(classes, tied=tied)
    loss, _ = problem(kind, reduction, 1, classes)
    targets = [problem(kind, reduction, rows, classes)[1] for rows in sizes]
    batches = [(torch.randn(len(y), 3, dtype=DOUBLE), y) for y in targets]
    risk = Risk(model, loss, batches)
    G = ggn_operator(risk, risk.params).to_dense()
    exact, empirical, sampled = (
        fisher_operator(risk, risk.params, kind, generator=torch.Generator().manual_seed(seed))
        for kind in ("exact", "empirical", "sampled")
    )
    matrices = []
    for A in (exact, empirical, sampled):
        matrices.append(dense := A.to_dense())
        torch.testing.assert_close(dense, dense.T)
        assert torch.linalg.eigvalsh(dense).min() >= -1e-10 * (1 + dense.norm())
        v = A.domain.gaussian(torch.Generator().manual_seed(seed))
        assert float(A.curvature(v)) == pytest.approx(float(v @ dense @ v), rel=1e-8, abs=1e-12)
    torch.testing.assert_close(matrices[0], G)
    # One row has rank one at most, in the empirical and in the sampled matrix.
    for dense in matrices[1:]:
        values = torch.linalg.eigvalsh(dense)
        assert int((values > 1e-9 * values.max()).sum()) <= sum(sizes)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(checkpoint(self.body, x, use_reentrant=False))


def classes_risk(model, **options):
    torch.manual_seed(1)
    data = torch.randn(8, 3).double(), torch.randint(0, 3, (8,))
    return Risk(model, nn.CrossEntropyLoss(), data, **options)


def test_checkpointing():
    torch.manual_seed(0)
    model = Checkpointed().double()
    plain = nn.Sequential(model.body, model.head)
    for kind in ("exact", "empirical"):
        ours = fisher_operator(classes_risk(model), None, kind).to_dense()
        torch.testing.assert_close(
            ours, fisher_operator(classes_risk(plain), None, kind).to_dense()
        )


def test_pickling():
    torch.manual_seed(0)
    risk = classes_risk(network(3))
    for kind in ("exact", "sampled", "empirical"):
        A = fisher_operator(risk, risk.params, kind, samples=3, per="example")
        v = A.domain.gaussian()
        torch.testing.assert_close(pickle.loads(pickle.dumps(A)) @ v, A @ v)


def test_solvers_take_it():
    torch.manual_seed(0)
    risk = classes_risk(network(3))
    A = fisher_operator(risk, risk.params, "sampled", generator=torch.Generator().manual_seed(0))
    dense, n = A.to_dense(), A.shape[0]
    b = torch.randn(n, dtype=DOUBLE)
    x = solve(A + 0.1 * identity_operator(n), b, rtol=1e-10).x
    torch.testing.assert_close(x, torch.linalg.solve(dense + 0.1 * torch.eye(n).double(), b))
    torch.testing.assert_close(eigsh(A, 1).values[0], torch.linalg.eigvalsh(dense)[-1])


def test_autocast():
    torch.manual_seed(0)
    model = network(3).float()
    x, y = torch.randn(64, 3), torch.randint(0, 3, (64,))
    risk = Risk(model, nn.CrossEntropyLoss(), (x, y))
    exact = fisher_operator(risk, risk.params, "empirical").to_dense()
    with torch.autocast("cpu", torch.bfloat16):
        half = fisher_operator(risk, risk.params, "empirical").to_dense()
    error = (half - exact).norm() / exact.norm()
    assert 1e-6 < error < 0.05


class Squeezed(nn.Module):
    """Outputs of shape (N,), and () for a single example."""

    def __init__(self):
        super().__init__()
        self.net = network(1)

    def forward(self, x):
        return self.net(x).squeeze()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, x):
        hidden = torch.tanh(self.body(x))
        return self.a(hidden), self.b(hidden)


def both(z, y):
    return F.cross_entropy(z[0], y[0]) + 0.3 * F.mse_loss(z[1], y[1])


def images():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 1))


@pytest.mark.parametrize(
    ("model", "loss", "inputs", "targets"),
    [
        (Squeezed, nn.BCEWithLogitsLoss(), (6, 3), lambda: (torch.rand(6) > 0.5).double()),
        (images, nn.CrossEntropyLoss(), (4, 2, 4, 5), lambda: torch.randint(0, 4, (4, 4, 5))),
        (TwoHeads, both, (5, 3), lambda: (torch.randint(0, 3, (5,)), torch.randn(5, 2).double())),
    ],
)
def test_shapes_of_outputs(model, loss, inputs, targets):
    torch.manual_seed(0)
    model, x, y = model().double(), torch.randn(inputs, dtype=DOUBLE), targets()
    risk = Risk(model, loss, (x, y))
    exact = fisher_operator(risk, risk.params).to_dense()
    torch.testing.assert_close(exact, ggn_operator(risk, risk.params).to_dense())
    gradients = []
    for n in range(len(x)):
        single = tuple(t[n : n + 1] for t in y) if isinstance(y, tuple) else y[n : n + 1]
        model.zero_grad()
        z = model(x[n : n + 1])
        loss(z.reshape(1) if isinstance(model, Squeezed) else z, single).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    g = torch.stack(gradients)
    M = gradient_covariance_operator(risk, risk.params).to_dense()
    torch.testing.assert_close(M, g.T @ g / len(x))
    if isinstance(model, Squeezed):
        for per in ("row", "example"):
            empirical = fisher_operator(risk, risk.params, "empirical", per=per)
            torch.testing.assert_close(empirical.to_dense(), M)
    if not isinstance(model, TwoHeads):
        pixels = 1 if isinstance(model, Squeezed) else 20
        empirical = fisher_operator(risk, risk.params, "empirical", per="example")
        torch.testing.assert_close(empirical.to_dense(), pixels * M)
