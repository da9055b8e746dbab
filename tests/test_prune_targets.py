"""What a pruned network is led back to: the outputs of the dense one, by their divergence."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import kl_div

import hesse
from hesse import HesseError
from hesse.apps import Repair, prune
from hesse.apps.pruning.divergence import Divergence
from hesse.apps.pruning.model import QuadraticModel
from hesse.errors import Status
from tests.pruning_problems import (
    BEST,
    EXACT,
    LINEAR,
    NEAR,
    NETWORK,
    TRAINED,
    H,
    W,
    X,
    constrained_minimum,
)  # fmt: skip

SPACE = hesse.Space.of(TRAINED)
START = SPACE.flatten(TRAINED)
D = Divergence(TRAINED)


def divergence_of_probabilities(w):
    """That of Kullback and Leibler, and the weight decay."""
    outputs = [
        torch.func.functional_call(NETWORK.model, SPACE.unflatten(v), (X,)).log_softmax(1)
        for v in (w, START)
    ]
    decay = 0.5 * NETWORK.weight_decay * (w - START).square().sum()
    return kl_div(*outputs, reduction="batchmean", log_target=True) + decay


def test_divergence_of_cross_entropy():
    """The labels cancel; the value, the gradient and the Gauss-Newton matrix at the start."""
    g = torch.Generator().manual_seed(0)
    w = START + 0.3 * torch.randn(SPACE.n, generator=g, dtype=torch.float64)
    params = SPACE.unflatten(w)
    assert D.value(NETWORK, params) == pytest.approx(float(divergence_of_probabilities(w)))
    free = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(divergence_of_probabilities(free), free)
    torch.testing.assert_close(D.gradient(NETWORK, params), slope, **NEAR)
    torch.testing.assert_close(D.gradient(NETWORK, TRAINED), 0.0 * START, **NEAR)
    second = torch.autograd.functional.hessian(divergence_of_probabilities, START)
    G = hesse.ggn_operator(NETWORK, TRAINED).to_dense()
    torch.testing.assert_close(second, G, **NEAR)


def test_steps_forget_nothing():
    """On a quadratic risk many steps end where one does: the minimum for their last mask."""
    result = prune(LINEAR, BEST, 0.6, steps=3, damping=0.0, repair=EXACT)
    keep = result.mask["weight"].reshape(-1)
    d, least = constrained_minimum(H, 0 * W, W, keep)
    torch.testing.assert_close(result.params["weight"].reshape(-1), W + d, **NEAR)
    assert result.predicted_increase == pytest.approx(least, rel=1e-9)


def test_outputs_are_nearer_than_without_a_target():
    """With damping every step without a target stays near the last one, wherever that is."""
    values = [
        float(LINEAR(prune(LINEAR, BEST, 0.6, steps=4, damping=0.5, repair=repair).params))
        for repair in (EXACT, Repair(target=None, rtol=1e-12))
    ]
    assert values[0] < values[1]


@pytest.mark.slow
def test_refit_minimises_the_divergence_over_what_is_kept():
    repair = Repair(refit=12, rtol=1e-4)
    result = prune(NETWORK, TRAINED, 0.5, damping=0.01, repair=repair, held_out=NETWORK)
    keep = torch.cat([m.reshape(-1) for m in result.mask.values()])
    plain = prune(NETWORK, TRAINED, 0.5, damping=0.01, held_out=NETWORK)
    slopes = [D.gradient(NETWORK, p.params)[keep].norm() for p in (plain, result)]
    assert slopes[1] < 0.02 * slopes[0]


def test_refit_that_is_taken_again_brings_the_outputs_nearer():
    seen = []

    def note(state):
        seen.append((state.step, bool(state.found), state.w))

    result = prune(NETWORK, TRAINED, 0.6, repair=Repair(refit=3), callback=note)
    again = [w for _, found, w in seen if found]
    steps = [step for step, found, _ in seen if found]
    assert steps == list(range(1, len(result.history) + 1))
    values = [D.value(NETWORK, SPACE.unflatten(w)) for w in again]
    assert all(new <= old for old, new in pairwise(values))


@pytest.mark.slow
def test_a_refit_that_found_nothing_better_ends_where_it_did_when_resumed(tmp_path):
    options = {"score": "obd", "damping": 0.1, "repair": Repair(target="risk", refit=12)}
    whole = prune(LINEAR, BEST, 0.6, **options)
    assert 1 < len(whole.history) < 13  # the refit has ended before its limit
    assert whole.damping == whole.history[-1][1]  # of the last step, not of the failures after it
    for _ in range(13):
        parts = prune(LINEAR, BEST, 0.6, **options, checkpoint=tmp_path / "p", callback=bool)
        if parts.status is Status.CONVERGED:
            break
    assert parts.products == whole.products
    assert [row[:3] for row in parts.history[1:]] == [row[:3] for row in whole.history[1:]]


def test_only_held_out_data_have_a_held_out_loss():
    repair = Repair(target="risk", refit=2)
    without = prune(LINEAR, BEST, 0.6, score="obd", damping=0.1, repair=repair)
    assert without.held_out_loss is None
    assert all(math.isnan(row[3]) for row in without.history)
    held_out = LINEAR.subset(range(9))
    judged = prune(LINEAR, BEST, 0.6, score="obd", damping=0.1, repair=repair, held_out=held_out)
    assert judged.held_out_loss == pytest.approx(float(held_out(judged.params)))


def test_a_refit_after_no_damping_tries_larger_ones_each_time(monkeypatch):
    tried = []
    solved = QuadraticModel.all_repaired

    def noted(self, keep, dampings):
        tried.append(list(dampings))
        return [self.w.clone() for _ in solved(self, keep, dampings)]  # nothing is better

    monkeypatch.setattr(QuadraticModel, "all_repaired", noted)
    repair = Repair(target="risk", refit=3)
    prune(LINEAR, BEST, 0.6, score="obd", damping=0.0, repair=repair)
    assert len(tried) == 3
    assert max(tried[0]) < max(tried[1]) < max(tried[2])


def test_the_dense_network_runs_once_where_its_outputs_can_be_kept(monkeypatch):
    runs = []
    made = Divergence._dense
    monkeypatch.setattr(
        Divergence, "_dense", lambda self, loss: runs.append(loss) or made(self, loss)
    )
    params = SPACE.unflatten(SPACE.flatten(TRAINED) + 0.1)
    for share, expected in ((math.inf, 1), (0.0, 3)):
        monkeypatch.setattr(
            "hesse.apps.pruning.divergence.kept_share", lambda device, share=share: share
        )
        runs.clear()
        D = Divergence(TRAINED)
        values = {D.value(NETWORK, params) for _ in range(3)}
        assert values == {Divergence(TRAINED).value(NETWORK, params)}
        assert len(runs) == (expected + 1) * len(list(NETWORK.batches()))
        other = D.value(NETWORK.subset(range(9)), params)  # another risk has outputs of its own
        assert other == Divergence(TRAINED).value(NETWORK.subset(range(9)), params)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"target": "output"}, "Did you mean 'outputs'"), ({"target": None, "refit": 1}, "'risk'")],
)
def test_refusals(options, message):
    with pytest.raises(HesseError, match=message):
        Repair(**options)
