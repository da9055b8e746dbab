"""Influences: against dense definitions, exact retraining, and what they refuse."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import hesse
from hesse import HesseError, Risk
from hesse.apps import influence, lds, self_influence

N, Q, DECAY = 23, 4, 0.05
CE = nn.CrossEntropyLoss()
NEAR = {"rtol": 1e-8, "atol": 1e-12}
TIGHT = {"rtol": 1e-11}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(n=N, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(n, generator=g, dtype=torch.float64) > 0).long()
    return x, y + (x[:, 1] > 0.5).long()


X, Y = data()
XQ, YQ = data(Q, 2)
FIRST = Risk(net(), CE, (X, Y), weight_decay=DECAY)
THETA = hesse.minimize(FIRST, FIRST.params, atol=1e-11, rtol=0.0).x
SPACE = hesse.Space.of(THETA)
FLAT = SPACE.flatten(THETA)
NET = net()


def risk_of(sizes=N, loss=CE, decay=DECAY):
    batches = list(zip(X.split(sizes), Y.split(sizes), strict=True))
    return Risk(net(), loss, batches, weight_decay=decay)


def losses(flat, x=X, y=Y):
    z = torch.func.functional_call(NET, SPACE.unflatten(flat), (x,))
    return nn.functional.cross_entropy(z, y, reduction="none")


def jacobian(f, *args):
    return torch.func.jacrev(f)(FLAT, *args)


G, M = jacobian(losses), jacobian(losses, XQ, YQ).T
I = torch.eye(SPACE.n, dtype=torch.float64)


def hessian(weights=None):
    """Of the data part with these weights and 1/N, plus the weight decay."""
    w = torch.ones(N, dtype=torch.float64) if weights is None else weights
    return torch.func.hessian(lambda v: (w * losses(v)).sum() / N)(FLAT) + DECAY * I


def ggn(weights=None):
    w = torch.ones(N, dtype=torch.float64) if weights is None else weights
    J = jacobian(lambda v: torch.func.functional_call(NET, SPACE.unflatten(v), (X,)))
    p = torch.func.functional_call(NET, THETA, (X,)).softmax(1)
    S = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("i,iaj,iab,ibk->jk", w / N, J, S, J) + DECAY * I


# -- The formulas ----------------------------------------------------------------------------------


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


def test_renormalised_scores_are_the_derivative_of_the_smaller_mean():
    """At a minimum the change of the gradient is (g_i + decay theta) / (N - 1)."""
    got = influence(
        risk_of(9), THETA, (XQ, YQ), curvature="hessian", removal="renormalise", **TIGHT
    ).scores
    change = (G + DECAY * FLAT).T / (N - 1)
    torch.testing.assert_close(got, M.T @ torch.linalg.solve(hessian(), change), rtol=1e-7, atol=0)


def test_groups_add_up_by_labels_and_by_sets_that_overlap():
    each = influence(risk_of(9), THETA, (XQ, YQ), **TIGHT).scores
    labels = torch.arange(N) % 3 - 1
    got = influence(risk_of(9), THETA, (XQ, YQ), groups=labels, **TIGHT).scores
    expected = torch.stack([each[:, labels == k].sum(1) for k in (0, 1)], 1)
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


def test_leave_one_out_retraining_of_the_digits(digits):
    risk, theta, queries = digits
    each = risk.on(queries).per_example
    worst = int(each.losses(theta).argmax())
    result = influence(risk, theta, queries, curvature="hessian", rtol=1e-6)
    scores = result.scores[worst]
    chosen = scores.abs().topk(24).indices
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


# -- What is refused, and what warns ---------------------------------------------------------------

QUERIES = (XQ, YQ)
REFUSED = {
    "a function for a risk": (lambda: influence(losses, THETA, QUERIES), "hesse.Risk"),
    "a name of no curvature": (
        lambda: influence(FIRST, THETA, QUERIES, curvature="fisher"),
        "curvature to be one of",
    ),
    "an operator of another size": (
        lambda: influence(FIRST, THETA, QUERIES, curvature=hesse.identity_operator(3)),
        "symmetric operator of shape",
    ),
    "a negative damping": (
        lambda: influence(FIRST, THETA, QUERIES, damping=-1.0),
        "the mu >= 0",
    ),
    "damping that is no number": (
        lambda: self_influence(FIRST, THETA, damping="0.1"),
        "the mu >= 0",
    ),
    "a name of no removal": (
        lambda: influence(FIRST, THETA, QUERIES, removal="renormalize"),
        "renormalise",
    ),
    "newton without groups": (
        lambda: influence(FIRST, THETA, QUERIES, removal="newton"),
        "a system of its own",
    ),
    "newton of EK-FAC": (
        lambda: influence(
            FIRST, THETA, QUERIES, removal="newton", groups=[[0]], curvature="ekfac"
        ),
        "of the remaining data",
    ),
    "newton with a checkpoint": (
        lambda: influence(
            FIRST, THETA, QUERIES, removal="newton", groups=[[0]], checkpoint="file"
        ),
        "no checkpoint",
    ),
    "newton of a weighted risk": (
        lambda: influence(
            FIRST.weighted(torch.ones(N)), THETA, QUERIES, removal="newton", groups=[[0]]
        ),
        "without weights",
    ),
    "renormalise of a sum": (
        lambda: influence(
            risk_of(loss=nn.CrossEntropyLoss(reduction="sum")),
            THETA, QUERIES, removal="renormalise",
        ),
        "weigh alike",
    ),
    "renormalise with class weights": (
        lambda: influence(
            risk_of(loss=nn.CrossEntropyLoss(weight=torch.arange(1.0, 4.0).double())),
            THETA, QUERIES, removal="renormalise",
        ),
        "weigh alike",
    ),
    "labels of another length": (
        lambda: influence(FIRST, THETA, QUERIES, groups=torch.arange(3)),
        "labels from 0",
    ),
    "a list of places for groups": (
        lambda: influence(FIRST, THETA, QUERIES, groups=[0, 1]),
        "list of sets",
    ),
    "a place that is not there": (
        lambda: influence(FIRST, THETA, QUERIES, groups=[[N]]),
        "places of examples",
    ),
    "a group of all": (
        lambda: influence(FIRST, THETA, QUERIES, groups=torch.zeros(N, dtype=torch.int64)),
        "leave examples",
    ),
    "no top": (lambda: influence(FIRST, THETA, QUERIES, top=0), "top"),
    "of= that is a name": (lambda: influence(FIRST, THETA, QUERIES, of="margin"), "of='loss'"),
    "of= beside a function": (
        lambda: influence(FIRST, THETA, lambda p: p["0.weight"].sum(), of=lambda z, y: z[:, 0]),
        "either",
    ),
    "of= that does not reduce": (
        lambda: influence(FIRST, THETA, QUERIES, of=lambda z, y: z),
        "a number for each query",
    ),
    "queries that are not finite": (
        lambda: influence(FIRST, THETA, lambda p: (p["0.weight"] * math.nan).sum()),
        "finite gradients",
    ),
    "one example": (
        lambda: influence(Risk(net(), CE, (X[:1], Y[:1])), THETA, QUERIES),
        "two training examples",
    ),
    "an indefinite Hessian": (
        lambda: influence(
            risk_of(decay=0.0), {k: 3.0 * v for k, v in FIRST.params.items()}, QUERIES,
            curvature="hessian", rtol=1e-9,
        ),
        "negative or zero curvature",
    ),
    "a loss that is no mean": (
        lambda: influence(
            Risk(net(), lambda z, y: z.logsumexp(1).max(), (X, Y)), THETA, QUERIES
        ),
        "by functions of torch",
    ),
    "most that is no count": (lambda: self_influence(FIRST, THETA, most=0), "most"),
    "scores that are a vector": (
        lambda: lds(torch.ones(3), torch.ones(4, 3).bool(), torch.ones(4, 1)),
        "scores to be a matrix",
    ),
    "subsets that do not fit": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 2).bool(), torch.ones(4, 1)),
        "subsets \\(M, 3\\)",
    ),
    "subsets that are no mask": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3), torch.ones(4, 1)),
        "mask of booleans",
    ),
    "two subsets": (
        lambda: lds(torch.ones(1, 3), torch.ones(2, 3).bool(), torch.ones(2, 1)),
        "three subsets",
    ),
    "outcomes that are not finite": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3).bool(), torch.full((4, 1), math.nan)),
        "finite scores",
    ),
    "outcomes that are all alike": (
        lambda: lds(torch.ones(1, 3), torch.ones(4, 3).bool(), torch.ones(4, 1)),
        "change with the subset",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    call, says = REFUSED[case]
    with pytest.raises(HesseError, match=says) as caught:
        call()
    assert caught.value.call
    assert caught.value.remedy


def test_a_system_that_is_not_solved_warns():
    with pytest.warns(UserWarning, match="not exact"):
        result = influence(risk_of(), THETA, (XQ, YQ), rtol=1e-12, max_products=12)
    assert not result.converged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        influence(risk_of(), THETA, (XQ, YQ))


def test_the_default_point_is_the_model_as_it_is_now():
    risk = risk_of()
    with torch.no_grad():
        for name, p in risk.model.named_parameters():
            p.copy_(THETA[name])
    got = influence(risk, None, (XQ, YQ), **TIGHT).scores
    torch.testing.assert_close(got, influence(risk, THETA, (XQ, YQ), **TIGHT).scores, **NEAR)
