"""The root R of a Fisher matrix: R R' = F, whatever the loss and the batches."""

import pytest
import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.testing import check_operator
from tests.refusals import assert_refused


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(7, 3, generator=seeded(1), dtype=torch.float64)
Z = torch.randn(7, 4, generator=seeded(2), dtype=torch.float64)
TARGETS = {
    "cross-entropy": (nn.CrossEntropyLoss(), torch.randint(4, (7,), generator=seeded(3))),
    "sum": (nn.MSELoss(reduction="sum"), Z),
    "logits": (nn.BCEWithLogitsLoss(), (Z > 0).double()),
    "log-probabilities": (nn.NLLLoss(), torch.randint(4, (7,), generator=seeded(3))),
}


def net(loss):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)]
    return nn.Sequential(*layers, *([nn.LogSoftmax(1)] if isinstance(loss, nn.NLLLoss) else []))


@pytest.mark.parametrize(
    "name", ["cross-entropy", *(pytest.param(n, marks=pytest.mark.slow) for n in [*TARGETS][1:])]
)
def test_the_root_times_its_adjoint_is_the_fisher_matrix_without_weight_decay(name):
    loss, y = TARGETS[name]
    risk = Risk(net(loss).double(), loss, [(X[:2], y[:2]), (X[2:], y[2:])], weight_decay=0.3)
    R = hesse.fisher_root_operator(risk)
    F = hesse.fisher_operator(risk).to_dense()
    matrix = R.to_dense()
    expected = F - 0.3 * torch.eye(len(F), dtype=F.dtype)
    torch.testing.assert_close(matrix @ matrix.T, expected, rtol=1e-12, atol=1e-13)
    assert R.shape == (len(F), 28)
    for _ in range(4):  # by graphs at first, then by programs
        v, e = R.codomain.gaussian(seeded()), R.domain.gaussian(seeded())
        torch.testing.assert_close(R.T @ v, matrix.T @ v, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(R @ e, matrix @ e, rtol=1e-12, atol=1e-13)
    check_operator(R)


def test_nothing_is_kept_between_products_where_that_is_asked():
    loss, y = TARGETS["cross-entropy"]
    risk = Risk(net(loss).double(), loss, [(X[:2], y[:2]), (X[2:], y[2:])])
    plain = hesse.fisher_root_operator(risk).to_dense()
    thrifty = hesse.fisher_root_operator(risk, memory_budget="none").to_dense()
    torch.testing.assert_close(thrifty, plain, rtol=1e-12, atol=1e-14)


REFUSED = {
    "a function": (lambda: hesse.fisher_root_operator(lambda p: p.sum(), Z), "hesse.Risk"),
    "a loss that is no likelihood": (
        lambda: hesse.fisher_root_operator(
            Risk(net(None).double(), lambda z, y: (z - y).abs().mean(), (X, Z))
        ),
        "a loss that is a likelihood",
    ),
    "a budget in bytes": (
        lambda: hesse.fisher_root_operator(
            Risk(net(None).double(), nn.MSELoss(), (X, Z)), memory_budget="1GB"
        ),
        "memory_budget",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])
