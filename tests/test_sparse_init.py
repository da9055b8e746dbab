# SPDX-License-Identifier: Apache-2.0
"""sparse_init_: how many weights, of what law, in which layers."""

import pytest
import torch
from torch import nn

import hesse
from hesse.errors import ArgumentError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_unit_has_so_many_weights_of_this_deviation():
    layer = hesse.sparse_init_(
        nn.Linear(300, 2000), connections=10, std=0.5, bias=0.25, generator=seeded()
    )
    assert (layer.weight.count_nonzero(dim=1) == 10).all()
    chosen = layer.weight.detach()[layer.weight != 0]
    assert float(chosen.mean()) == pytest.approx(0.0, abs=4 * 0.5 / len(chosen) ** 0.5)
    assert float(chosen.std()) == pytest.approx(0.5, rel=4 / (2 * len(chosen)) ** 0.5)
    assert (layer.bias == 0.25).all()
    uses = layer.weight.count_nonzero(dim=0).double()  # of every input: binomial, mean 2000 / 30
    assert float(uses.mean()) == pytest.approx(2000 / 30)
    assert float(uses.var()) == pytest.approx(2000 / 30, rel=0.35)


def test_units_with_few_inputs_take_all_and_kernels_count_as_inputs():
    model = nn.Sequential(nn.Linear(4, 3), nn.Conv2d(2, 5, 3))
    hesse.sparse_init_(model, connections=15, generator=seeded())
    assert (model[0].weight != 0).all()
    assert (model[1].weight.flatten(1).count_nonzero(dim=1) == 15).all()


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_recurrent_matrices_have_the_spectral_radius_that_was_asked_for(kind):
    model = hesse.sparse_init_(kind(2, 40), spectral_radius=1.1, generator=seeded())
    for gate in model.weight_hh_l0.detach().split(40):
        assert float(torch.linalg.eigvals(gate).abs().max()) == pytest.approx(1.1, rel=1e-4)
        assert (gate.count_nonzero(dim=1) == 15).all()


def test_other_layers_stay_and_a_seed_fixes_the_weights():
    def model():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(30, 4), nn.LayerNorm(4), nn.Embedding(5, 6))

    a, b = (hesse.sparse_init_(model(), generator=seeded(3)) for _ in range(2))
    assert torch.equal(a[0].weight, b[0].weight)
    assert torch.equal(a[1].weight, torch.ones(4))
    assert torch.equal(a[2].weight, model()[2].weight)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ArgumentError, match="recurrent"):
        hesse.sparse_init_(nn.LayerNorm(3))
