# SPDX-License-Identifier: Apache-2.0
"""Influences: against dense definitions, exact retraining, and what they refuse."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hesse
from hesse import Risk
from hesse.apps import influence, lds, self_influence
from tests.influence_problem import (
    CE,
    DECAY,
    FLAT,
    NEAR,
    SPACE,
    THETA,
    TIGHT,
    XQ,
    YQ,
    G,
    I,
    M,
    N,
    Q,
    X,
    Y,
    ggn,
    hessian,
    losses,
    net,
    risk_of,
)

# -- The formulas ----------------------------------------------------------------------------------


@pytest.mark.some_cases(5)
@pytest.mark.parametrize("sizes", [N, 5])
@pytest.mark.parametrize("damping", [0.0, 0.02])
@pytest.mark.parametrize(("name", "H"), [("hessian", hessian), ("ggn", ggn)])
def test_scores_are_those_of_the_dense_definition(name, H, damping, sizes):
    got = influence(risk_of(sizes), THETA, (XQ, YQ), curvature=name, damping=damping, rtol=1e-11)
    expected = M.T @ torch.linalg.solve(H() + damping * I, G.T) / N
    torch.testing.assert_close(got.scores, expected, **NEAR)
    assert got.converged
    assert got.products > 0
    torch.testing.assert_close(got.solution.x, torch.linalg.solve(H() + damping * I, M), **NEAR)


def test_ragged_batches_and_several_batches_of_queries_give_the_scores_of_one():
    one = influence(risk_of(), THETA, (XQ, YQ), rtol=1e-13).scores
    queries = [(XQ[:3], YQ[:3]), (XQ[3:], YQ[3:])]
    for sizes in (10, [1, 9, 13]):
        several = influence(risk_of(sizes), THETA, queries, rtol=1e-13).scores
        torch.testing.assert_close(several, one, rtol=1e-10, atol=1e-13)


def test_data_of_a_loader_in_single_precision():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X.float(), Y), 10)
    single = Risk(net().float(), CE, loader, weight_decay=DECAY)
    theta = {name: leaf.float() for name, leaf in THETA.items()}
    got = influence(single, theta, (XQ.float(), YQ), rtol=1e-6)
    exact = influence(risk_of(), THETA, (XQ, YQ), **TIGHT).scores
    assert got.scores.dtype is torch.float32
    torch.testing.assert_close(
        got.scores.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max())
    )


def test_a_sum_has_the_scores_of_its_mean():
    total = risk_of(7, nn.CrossEntropyLoss(reduction="sum"), N * DECAY)
    got = influence(total, THETA, risk_of().on((XQ, YQ)), damping=N * 0.01, **TIGHT).scores
    expected = influence(risk_of(), THETA, (XQ, YQ), damping=0.01, **TIGHT).scores
    torch.testing.assert_close(got, expected, **NEAR)


@pytest.mark.parametrize("count", [1, 3])
def test_the_loss_of_a_query_does_not_depend_on_how_many_there_are(count):
    total = risk_of(7, nn.CrossEntropyLoss(reduction="sum"), N * DECAY)
    queries = XQ[:count], YQ[:count]
    each = partial(F.cross_entropy, reduction="none")
    expected = influence(total, THETA, queries, of=each, damping=N * 0.01, **TIGHT).scores
    got = influence(total, THETA, queries, damping=N * 0.01, **TIGHT).scores
    torch.testing.assert_close(got, expected, **NEAR)


def test_renormalised_scores_are_the_derivative_of_the_smaller_mean():
    """At a minimum the change of the gradient is (g_i + decay theta) / (N - 1)."""
    got = influence(
        risk_of(9), THETA, (XQ, YQ), curvature="hessian", removal="renormalise", **TIGHT
    ).scores
    change = (G + DECAY * FLAT).T / (N - 1)
    torch.testing.assert_close(got, M.T @ torch.linalg.solve(hessian(), change), rtol=1e-7, atol=0)


@pytest.mark.slow
def test_groups_add_up_by_labels_and_by_sets_that_overlap():
    each = influence(risk_of(9), THETA, (XQ, YQ), **TIGHT).scores
    labels = torch.arange(N) % 3 - 1
    got = influence(risk_of(9), THETA, (XQ, YQ), groups=labels, **TIGHT).scores
    expected = torch.stack([each[:, labels == k].sum(1) for k in (0, 1)], 1)
    small = labels.numpy().astype("int8")
    again = influence(risk_of(9), THETA, (XQ, YQ), groups=small, **TIGHT).scores
    torch.testing.assert_close(again, got)
    torch.testing.assert_close(got, expected, **NEAR)
    sets = [[3, 20, 3], torch.arange(N) < 4, np.array([22])]
    got = influence(risk_of(9), THETA, (XQ, YQ), groups=sets, removal="renormalise", **TIGHT).scores
    left = each * N - each.sum(1, keepdim=True)
    parts = [left[:, [3, 20]].sum(1) / (N - 2), left[:, :4].sum(1) / (N - 4), left[:, 22] / (N - 1)]
    torch.testing.assert_close(got, torch.stack(parts, 1), **NEAR)


@pytest.mark.parametrize(("name", "H"), [("hessian", hessian), ("ggn", ggn)])
def test_newton_steps_are_those_of_the_dense_formula(name, H):
    sets = [[0], list(range(6))]
    options = {"groups": sets, "removal": "newton", "damping": 0.1}
    got = influence(risk_of(9), THETA, (XQ, YQ), curvature=name, **options, **TIGHT)
    for k, places in enumerate(sets):
        w = torch.ones(N, dtype=torch.float64)
        w[places] = 0.0
        step = torch.linalg.solve(H(w) + 0.1 * I, G[places].sum(0) / N)
        expected = losses(FLAT + step, XQ, YQ) - losses(FLAT, XQ, YQ)
        torch.testing.assert_close(got.scores[:, k], expected, rtol=1e-7, atol=1e-12)
    assert got.products > 0


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("k", [1, 5, 100])
def test_the_top_are_those_of_all_scores(k):
    scores = influence(risk_of(4), THETA, (XQ, YQ), **TIGHT).scores
    result = influence(risk_of(4), THETA, (XQ, YQ), top=k, **TIGHT)
    best = scores.abs().sort(dim=1, descending=True).indices[:, :k]
    assert result.scores is None
    assert torch.equal(result.top.indices, best)
    torch.testing.assert_close(result.top.values, scores.gather(1, best), **NEAR)
    few = influence(
        risk_of(9), THETA, (XQ, YQ), groups=[[1], [2, 3]], removal="newton", top=1, **TIGHT
    )
    assert few.top.values.shape == (Q, 1)


def test_queries_may_be_margins_and_functions_of_the_parameters():
    def margin(z, y):
        return z.gather(1, y[:, None])[:, 0] - z.logsumexp(1)

    got = influence(risk_of(), THETA, (XQ, YQ), of=margin, **TIGHT).scores
    by_loss = influence(risk_of(), THETA, (XQ, YQ), **TIGHT).scores
    torch.testing.assert_close(got, -by_loss, **NEAR)
    square = influence(risk_of(), THETA, lambda p: (p["0.weight"] ** 2).sum(), **TIGHT).scores
    g = torch.func.grad(lambda v: (SPACE.unflatten(v)["0.weight"] ** 2).sum())(FLAT)
    expected = (g @ torch.linalg.solve(ggn(), G.T) / N)[None]
    torch.testing.assert_close(square, expected, **NEAR)


# -- EK-FAC, operators, preconditioners ------------------------------------------------------------


def test_ekfac_and_other_operators_stand_in_for_the_curvature():
    E = hesse.ekfac_operator(risk_of(), THETA)
    dense = E.to_dense()
    expected = M.T @ torch.linalg.solve(dense + 0.01 * I, G.T) / N
    for curvature in ("ekfac", E, hesse.dense_operator(dense)):
        got = influence(risk_of(7), THETA, (XQ, YQ), curvature=curvature, damping=0.01, **TIGHT)
        torch.testing.assert_close(got.scores, expected, **NEAR)
        assert got.converged


def test_low_rank_with_its_complement_takes_no_products():
    """The eigenvectors beyond the rank of the data part have the weight decay as eigenvalue."""
    values, vectors = torch.linalg.eigh(ggn())
    large = values > DECAY + 1e-10
    low = hesse.low_rank_operator(vectors[:, large], values[large] - DECAY)
    A = low + DECAY * hesse.identity_operator(SPACE.n, dtype=torch.float64)
    got = influence(risk_of(7), THETA, (XQ, YQ), curvature=A, **TIGHT)
    exact = influence(risk_of(7), THETA, (XQ, YQ), **TIGHT)
    torch.testing.assert_close(got.scores, exact.scores, rtol=1e-7, atol=1e-11)
    assert got.products <= Q  # to verify


def test_ekfac_as_preconditioner_changes_the_products_not_the_scores():
    plain = influence(risk_of(), THETA, (XQ, YQ), curvature="ggn", **TIGHT)
    quick = influence(risk_of(), THETA, (XQ, YQ), preconditioner="ekfac", **TIGHT)
    torch.testing.assert_close(quick.scores, plain.scores, **NEAR)


def test_ekfac_of_a_linear_regression_is_the_inverse_that_is_wanted():
    model = nn.Linear(4, 2).double()
    risk = Risk(model, nn.MSELoss(), (X * torch.logspace(0, 2, 4), X[:, :2] ** 2), 0.01)
    queries = (XQ, XQ[:, :2])
    plain, quick = (
        influence(risk, None, queries, preconditioner=p, rtol=1e-9) for p in (None, "ekfac")
    )
    torch.testing.assert_close(quick.scores, plain.scores, rtol=1e-6, atol=1e-12)
    assert quick.products <= 3 * Q < plain.products


@pytest.mark.parametrize("most", [256, 6])
def test_self_influence_is_the_diagonal(most):
    got = self_influence(risk_of(9), THETA, curvature="hessian", most=most, rtol=1e-11)
    expected = (G * torch.linalg.solve(hessian(), G.T).T).sum(1) / N
    torch.testing.assert_close(got.scores, expected, **NEAR)
    own = influence(risk_of(9), THETA, (X, Y), curvature="hessian", **TIGHT).scores.diagonal()
    torch.testing.assert_close(got.scores, own, **NEAR)
    assert self_influence(risk_of(), THETA, curvature="ekfac").scores.min() > 0.0


# -- Exact retraining ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Softmax regression on 400 digits of scikit-learn, and 50 others."""
    pixels, labels = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(pixels / 16)[order], torch.tensor(labels)[order]
    model = nn.Linear(64, 10).double()
    risk = Risk(model, CE, (x[:400], y[:400]), weight_decay=0.01)
    zero = {name: 0 * leaf for name, leaf in risk.params.items()}
    theta = hesse.minimize(risk, zero, atol=1e-9, rtol=0.0).x
    return risk, theta, (x[400:450], y[400:450])


@pytest.mark.slow
def test_leave_one_out_retraining_of_the_digits(digits):
    risk, theta, queries = digits
    each = risk.on(queries).per_example
    worst = int(each.losses(theta).argmax())
    result = influence(risk, theta, queries, curvature="hessian", rtol=1e-6)
    scores = result.scores[worst]
    chosen = scores.abs().topk(12).indices
    step = influence(
        risk, theta, queries, curvature="hessian", rtol=1e-6,
        groups=[[int(i)] for i in chosen[:6]], removal="newton",
    ).scores[worst]  # fmt: skip
    before, actual = each.losses(theta)[worst], []
    for i in chosen.tolist():
        weights = torch.ones(400)
        weights[i] = 0.0
        again = hesse.minimize(risk.weighted(weights), theta, atol=1e-9, rtol=0.0)
        actual.append(float(each.losses(again.x)[worst] - before))
    actual, predicted = np.array(actual), scores[chosen].numpy()
    assert np.corrcoef(actual, predicted)[0, 1] >= 0.999
    assert np.linalg.norm(actual - predicted) < 0.15 * np.linalg.norm(actual)
    errors = [np.linalg.norm(s - actual[:6]) for s in (step.numpy(), predicted[:6])]
    assert errors[0] < 0.4 * errors[1]
    assert result.products < 20 * 50  # all queries share the products


# -- The linear datamodelling score ----------------------------------------------------------------


def test_lds_is_the_mean_rank_correlation_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 30, generator=g)
    subsets = torch.rand(20, 30, generator=g) < 0.5
    outcomes = (~subsets).float() @ scores.T + 2.0 * torch.randn(20, 5, generator=g)
    outcomes[3] = outcomes[4]  # equal values share their rank
    predicted = (~subsets).float() @ scores.T
    rho = [stats.spearmanr(predicted[:, q], outcomes[:, q])[0] for q in range(5)]
    estimate = lds(scores, subsets, outcomes)
    assert estimate.value == pytest.approx(np.mean(rho), abs=1e-12)
    assert estimate.standard_error == pytest.approx(np.std(rho, ddof=1) / math.sqrt(5))
    assert estimate.products == 0
    assert lds(scores, subsets, predicted).value == pytest.approx(1.0)
    assert lds(-scores, subsets, predicted).value == pytest.approx(-1.0)
    assert lds(0 * scores, subsets, outcomes).value == 0.0
