"""Layer-wise surgery: one elimination by columns for all rows, against one for each row."""

import pytest
import torch
from torch import nn

from hesse import Risk
from hesse.apps import prune
from hesse.apps.pruning.curvature import layer_curvature
from hesse.apps.pruning.layerwise import eliminate_columns

NEAR = {"rtol": 1e-8, "atol": 1e-10}
G = torch.Generator().manual_seed(0)
X = torch.randn(17, 8, generator=G, dtype=torch.float64).cumsum(1)
V = torch.randn(3, 8, generator=G, dtype=torch.float64)
S = 2 * X.T @ X / 17
ALL = torch.ones(8, dtype=torch.bool)


def test_layer_curvature_is_that_of_the_outputs():
    model = nn.Linear(8, 3, bias=False).double()
    data = list(zip(X.split(6), X.split(6), strict=True))  # ragged batches
    A = layer_curvature(Risk(model, lambda z, x: z.square().mean(), data), None).to_dense()
    torch.testing.assert_close(A, torch.kron(torch.eye(3).double(), S), **NEAR)


@pytest.mark.parametrize("m", [None, 4])
def test_columns_are_eliminated_as_in_each_row(m):
    """By the inverse of what is left of H, for each row and column by itself."""
    found, keep = eliminate_columns(V, S, 0.5, ALL, m)
    assert int((~keep).sum()) == 12
    expected = V.clone()
    for row, kept in zip(expected, keep, strict=True):
        for j in range(8):
            if not kept[j]:
                rest = torch.linalg.inv(S[j:, j:])
                row[j:] -= row[j].clone() / rest[0, 0] * rest[:, 0]
    torch.testing.assert_close(found, expected, **NEAR)
    if m is not None:
        assert (keep.view(3, 2, 4).sum(-1) == 2).all()


def test_dead_inputs_lose_their_weights():
    H = S.clone()
    H[2], H[:, 2] = 0.0, 0.0
    found, keep = eliminate_columns(V, H, 1 / 8, ALL)
    assert not keep[:, 2].any()
    rest = torch.arange(8) != 2
    torch.testing.assert_close(found[:, rest], V[:, rest])


def test_layers_are_pruned_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    risk = Risk(model, nn.CrossEntropyLoss(), (X, (X[:, 0] > 0).long() + (X[:, 1] > 0).long()))
    for score in ("obs", "exchange"):
        result = prune(risk, None, 0.5, curvature="layers", score=score, damping=0.01)
        assert [int((~result.mask[k]).sum()) for k in ("0.weight", "2.weight")] == [24, 9]
        assert result.mask["0.bias"].all()
    half = prune(risk, None, None, curvature="layers", score="obs", pattern="1:2")
    assert (half.mask["0.weight"].view(6, 4, 2).sum(-1) == 1).all()
