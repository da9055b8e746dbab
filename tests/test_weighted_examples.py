# SPDX-License-Identifier: Apache-2.0
"""risk.weighted(w) and risk.subset(indices), for every operator, against sums over examples."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hesse import (
    Risk,
    fisher_operator,
    ggn_operator,
    gradient_covariance_operator,
    hessian_operator,
    jacobian_operator,
)
from hesse.errors import ArgumentError, DataError, FunctionError
from tests.weighted_risks import (
    DOUBLE,
    RISKS,
    WEIGHTS,
    N,
    OwnLoss,
    V,
    contributions,
    padded,
    risk,
    time_first,
    x,
    y,
)


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(5)
@pytest.mark.parametrize("name", RISKS)
@pytest.mark.parametrize("mode", ["retained-graph", "traced-split"])
def test_weighted_is_the_weighted_sum_of_contributions(name, mode):
    r = risk(name, weight_decay=0.1)
    weighted, part = r.weighted(WEIGHTS), contributions(r)

    def exact(params):
        decay = sum((leaf * leaf).sum() for leaf in params.values())
        return sum(w * part(params, n) for n, w in enumerate(WEIGHTS)) + 0.05 * decay

    torch.testing.assert_close(weighted(r.params), exact(r.params))
    H = hessian_operator(weighted, r.params, mode=mode)
    torch.testing.assert_close(H.to_dense(), hessian_operator(exact, r.params).to_dense())
    torch.testing.assert_close(H.value, exact(r.params))
    moved = {key: leaf + 0.1 for key, leaf in r.params.items()}
    torch.testing.assert_close(H.at(moved).to_dense(), hessian_operator(exact, moved).to_dense())


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["mean", "class weights", "sum", "bernoulli", "tokens", "masked"])
@pytest.mark.parametrize(
    "make",
    [
        ggn_operator,
        fisher_operator,
        lambda risk, at: fisher_operator(risk, at, "empirical"),
        lambda risk, at: fisher_operator(risk, at, "empirical", per="example"),
    ],
    ids=["Gauss-Newton", "Fisher", "empirical", "empirical of examples"],
)
def test_gauss_newton_and_fisher_matrices_of_weighted_examples(name, make):
    r = risk(name)
    weighted = r.weighted(WEIGHTS)
    ones = [r.weighted(row) for row in torch.eye(N, dtype=DOUBLE)]
    exact = sum(w * make(one, r.params).to_dense() for w, one in zip(WEIGHTS, ones, strict=True))
    torch.testing.assert_close(make(weighted, r.params).to_dense(), exact)
    all_ones = make(r.weighted(torch.ones(N).double()), r.params).to_dense()
    torch.testing.assert_close(all_ones, make(r, r.params).to_dense())
    J, Jw = (jacobian_operator(each, r.params).to_dense() for each in (r, weighted))
    torch.testing.assert_close(J, Jw)


@pytest.mark.parametrize("name", RISKS)
def test_several_batches(name):
    weight = {"tokens": lambda inputs, t: float((t != -100).sum()),
              "masked": lambda inputs, t: float((t > 0).sum())}.get(name)  # fmt: skip
    whole, cut = risk(name).weighted(WEIGHTS), risk(name, (3, 3, 1), weight=weight)
    torch.testing.assert_close(
        hessian_operator(cut.weighted(WEIGHTS), cut.params).to_dense(),
        hessian_operator(whole, cut.params).to_dense(),
    )


def test_other_weights_share_programs():
    r = risk("mean")
    H = hessian_operator(r.weighted(WEIGHTS), r.params, mode="traced-split")
    v = H.domain.gaussian()
    _ = H @ v
    entries = len(r.programs)
    other = hessian_operator(r.weighted(WEIGHTS.flip(0)), r.params, mode="traced-split")
    exact = hessian_operator(r.weighted(WEIGHTS.flip(0)), r.params, mode="reverse-over-reverse")
    torch.testing.assert_close(other @ v, exact @ v)
    assert len(r.programs) == entries


def test_a_model_that_computes_its_own_loss():
    torch.manual_seed(0)
    model, ids, labels = OwnLoss().double(), y(N, 3), padded()
    own = Risk(model, lambda out, batch: out["loss"], [{"ids": ids, "labels": labels}])
    plain = Risk(model.inner, time_first, (ids, labels))
    at = own.params
    for make in (hessian_operator, ggn_operator, fisher_operator):
        torch.testing.assert_close(
            make(own.weighted(WEIGHTS), at).to_dense(),
            make(plain.weighted(WEIGHTS), plain.params).to_dense(),
        )


def test_a_model_that_computes_its_loss_in_float32():
    class Half(OwnLoss):
        def forward(self, ids, labels):
            z = self.inner(ids).float()
            return {"loss": F.cross_entropy(z.transpose(1, 2), labels)}

    torch.manual_seed(0)
    r = Risk(Half().double(), lambda out, b: out["loss"], [{"ids": y(N, 3), "labels": padded()}])
    twice = r.weighted(torch.full((N,), 2.0))
    torch.testing.assert_close(twice(r.params), 2 * r(r.params))


def test_a_loader():
    torch.manual_seed(0)
    data = TensorDataset(x(), y())
    plain = risk("mean")
    ordered = Risk(plain.model, plain.loss, DataLoader(data, 3))
    torch.testing.assert_close(
        ordered.weighted(WEIGHTS)(plain.params), plain.weighted(WEIGHTS)(plain.params)
    )
    shuffled = Risk(plain.model, plain.loss, DataLoader(data, 3, shuffle=True)).weighted(WEIGHTS)

    def values():
        return [shuffled(plain.params) for _ in range(5)]

    with pytest.raises(DataError, match="the same"):
        values()


def test_microbatches_keep_weights():
    torch.manual_seed(0)
    inputs, targets = torch.randn(300, 20).double(), torch.randint(0, V, (300,))
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, V)).double()
    r = Risk(model, nn.CrossEntropyLoss(), (inputs, targets)).weighted(torch.rand(300).double())
    exact, small = (
        hessian_operator(r, r.params, memory_budget=budget) for budget in (None, "500KB")
    )
    v = exact.domain.gaussian()
    torch.testing.assert_close(small @ v, exact @ v)


def test_refused():
    r = risk("mean")
    with pytest.raises(ArgumentError, match="7 finite weights"):
        r.weighted(torch.ones(6))
    for weights, match in ((-WEIGHTS, "-3"), (0.0 * WEIGHTS, "a sum of 0")):
        M = gradient_covariance_operator(r.weighted(weights), r.params)
        with pytest.raises(ArgumentError, match=match):
            _ = M @ torch.ones(M.shape[0], dtype=DOUBLE)

    def penalised(z, t):
        return F.cross_entropy(z, t) + z.square().mean()

    def by_hand(z, t):
        return -z.log_softmax(1).gather(1, t[:, None]).mean()

    for loss, match in ((penalised, "penalised, which is something"), (by_hand, "by_hand, in wh")):
        with pytest.raises(FunctionError, match=match):
            Risk(r.model, loss, (x(), y())).weighted(WEIGHTS)

    class Coupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, V)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    with pytest.raises(DataError, match="do not influence one another"):
        Risk(Coupled().double(), nn.CrossEntropyLoss(), (x(), y())).weighted(WEIGHTS)


# -- Subsets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[0, 2, 3, 6], [1], [5, 5, 0]])
def test_subset_is_the_risk_of_these_examples(indices):
    for parts in ((N,), (3, 3, 1)):
        r = risk("mean", parts, weight_decay=0.1)
        inputs, targets = x()[indices], y()[indices]
        alone = Risk(r.model, r.loss, (inputs, targets), weight_decay=0.1)
        subset = r.subset(torch.tensor(indices))
        torch.testing.assert_close(
            hessian_operator(subset, r.params).to_dense(),
            hessian_operator(alone, r.params).to_dense(),
        )
        torch.testing.assert_close(
            gradient_covariance_operator(subset, r.params).to_dense(),
            gradient_covariance_operator(alone, r.params).to_dense(),
        )


def test_places_may_be_a_set_and_what_is_no_place_is_named():
    r = risk("mean")
    torch.testing.assert_close(r.subset({5, 2})(r.params), r.subset([2, 5])(r.params))
    for wrong, got in ((None, "a NoneType"), ("abc", "a str"), ([[0], [1, 2]], "a list")):
        with pytest.raises(ArgumentError, match=f"got:      {got}"):
            r.subset(wrong)
        with pytest.raises(ArgumentError, match=f"got:      {got}"):
            r.weighted(wrong)


@pytest.mark.parametrize("parts", [(N,), (4, 3)])
def test_an_autoencoder_whose_targets_are_its_inputs(parts):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2)).double()
    pixels = torch.randn(N, 2, dtype=DOUBLE)
    r = Risk(model, nn.MSELoss(), [(batch, batch) for batch in pixels.split(list(parts))])
    kept = torch.tensor([0, 2, 5])
    alone = Risk(model, nn.MSELoss(), (pixels[kept], pixels[kept]))
    weights = torch.zeros(N, dtype=DOUBLE).index_fill(0, kept, N / 3)
    for other in (r.subset(kept), r.weighted(weights)):
        torch.testing.assert_close(other(r.params), alone(r.params))
        H, expected = (hessian_operator(f, r.params).to_dense() for f in (other, alone))
        torch.testing.assert_close(H, expected)


def test_a_mask_dictionaries_and_weights():
    torch.manual_seed(0)
    ids, labels = y(N, 3), padded()
    own = Risk(OwnLoss().double(), lambda out, batch: out["loss"], [{"ids": ids, "labels": labels}])
    mask = torch.tensor([True, False, True, True, False, False, True])
    alone = own.on([{"ids": ids[mask], "labels": labels[mask]}])
    torch.testing.assert_close(own.subset(mask)(own.params), alone(own.params))
    r = risk("mean")
    kept = torch.tensor([1, 3, 4])
    torch.testing.assert_close(
        r.weighted(WEIGHTS).subset(kept)(r.params), r.subset(kept).weighted(WEIGHTS[kept])(r.params)
    )
    for wrong in ([7], [-1], [], torch.ones(3, dtype=torch.bool), [0.5]):
        with pytest.raises(ArgumentError, match="places of examples"):
            r.subset(wrong)
