# SPDX-License-Identifier: Apache-2.0
"""Standard errors against closed forms, dense matrices and statsmodels."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian

import hesse
from hesse.apps import profile, standard_errors
from hesse.errors import (
    ArgumentError,
    FunctionError,
    NonFiniteError,
    OperatorError,
    ShapeError,
    StructureError,
)
from tests.statistics_problems import (
    CLUSTERS,
    DOUBLE,
    FITS,
    LOSSES,
    TARGETS,
    UNIFORM,
    X,
    close,
    dense,
    k,
    logit,
    n,
    seeded,
    terms,
)


@pytest.mark.parametrize("name", LOSSES)
def test_errors_are_those_of_the_dense_formulas(name):
    V, S = dense(name)
    f, beta = terms(name), FITS[name]
    close(standard_errors(f, beta).covariance, V)
    close(standard_errors(lambda b: f(b).sum(), beta).standard_error, V.diagonal().sqrt())
    sandwich = V @ S.T @ S @ V
    close(standard_errors(f, beta, robust="HC0").covariance, sandwich)
    close(standard_errors(f, beta, robust="HC1").covariance, sandwich * n / (n - k))
    sums = torch.stack([S[c == CLUSTERS].sum(0) for c in range(20)])
    factor = 20 / 19 * (n - 1) / (n - k)
    clustered = standard_errors(f, beta, robust=CLUSTERS)
    close(clustered.covariance, factor * V @ sums.T @ sums @ V)
    close(clustered.z * clustered.standard_error, beta)
    assert "clustered" in clustered.information


@pytest.mark.parametrize("name", ["logit", "poisson"])
def test_for_canonical_links_both_informations_are_equal_and_a_risk_equals_its_function(name):
    loss = nn.BCEWithLogitsLoss if name == "logit" else nn.PoissonNLLLoss
    model = nn.Linear(k, 1, bias=False).double()
    params, y = {"weight": FITS[name][None]}, TARGETS[name][:, None]
    batches = [(X[:70], y[:70]), (X[70:], y[70:])]
    right = standard_errors(terms(name), FITS[name])
    for reduction in ("mean", "sum"):
        risk = hesse.Risk(model, loss(reduction=reduction), batches)
        for information in ("observed", "fisher"):
            got = standard_errors(risk, params, information=information)
            close(got.standard_error["weight"][0], right.standard_error)
        for robust in ("HC0", "HC1", CLUSTERS):
            got = standard_errors(risk, params, robust=robust)
            close(
                got.covariance, standard_errors(terms(name), FITS[name], robust=robust).covariance
            )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_robust_errors_of_weighted_examples_have_the_squares_of_the_weights(reduction):
    """Scores are w s: a constant weight changes no sandwich, although it changes the Hessian."""
    model = nn.Linear(k, 1, bias=False).double()
    params, y = {"weight": FITS["logit"][None]}, TARGETS["logit"][:, None]
    loss = nn.BCEWithLogitsLoss(reduction=reduction)
    risk = hesse.Risk(model, loss, [(X[:70], y[:70]), (X[70:], y[70:])])
    plain = standard_errors(risk, params, robust="HC0").covariance
    twice = risk.weighted(torch.full((n,), 2.0, dtype=DOUBLE))
    close(standard_errors(twice, params, robust="HC0").covariance, plain)
    w = 0.5 + torch.rand(n, dtype=DOUBLE, generator=seeded(2))
    fit = hesse.minimize(risk.weighted(w), params).x
    f = terms("logit")
    right = standard_errors(lambda b: w * f(b), fit["weight"][0], robust="HC0").covariance
    close(standard_errors(risk.weighted(w), fit, robust="HC0").covariance, right)


@pytest.mark.parametrize("robust", ["HC0", "HC1", CLUSTERS])
def test_robust_errors_of_several_outputs_and_of_class_weights(robust):
    y = (TARGETS["logit"] + UNIFORM.round()).long()
    weights = torch.tensor([1.0, 4.0, 0.5], dtype=DOUBLE)
    model = nn.Linear(k, 3, bias=False).double()

    def squares(W):
        return (X @ W.T - nn.functional.one_hot(y, 3)).square().sum(1)

    def entropies(W):
        return weights[y] * nn.functional.cross_entropy(X @ W.T, y, reduction="none")

    targets = nn.functional.one_hot(y, 3).double()
    for terms_of, loss, target in (
        (squares, nn.MSELoss(), targets),
        (entropies, nn.CrossEntropyLoss(weights), y),
    ):
        risk = hesse.Risk(model, loss, [(X[:70], target[:70]), (X[70:], target[70:])])
        with warnings.catch_warnings():  # of softmax the logits may all move
            warnings.simplefilter("ignore")
            of = torch.eye(3 * k, dtype=DOUBLE)[:k] - torch.eye(3 * k, dtype=DOUBLE)[k : 2 * k]
            W = hesse.minimize(risk, risk.params).x["weight"]
            right = standard_errors(terms_of, W, robust=robust, of=of).covariance
            got = standard_errors(risk, {"weight": W}, robust=robust, of=of).covariance
        close(got, right)


def test_the_fisher_information_of_a_probit_is_not_its_hessian():
    """With log-probabilities as outputs the Gauss-Newton matrix is the expected information."""
    beta = FITS["probit"]

    def outputs(b, x):
        eta = x @ b
        return torch.stack([torch.special.log_ndtr(-eta), torch.special.log_ndtr(eta)], 1)

    risk = hesse.Risk(outputs, nn.CrossEntropyLoss(), (X, TARGETS["probit"].long()), params=beta)
    eta = X @ beta
    density = torch.exp(-(eta**2) / 2) / math.sqrt(2 * math.pi)
    p = torch.special.ndtr(eta)
    F = (X * (density**2 / (p * (1 - p)))[:, None]).T @ X
    expected = standard_errors(risk, beta, information="fisher")
    observed = standard_errors(risk, beta)
    close(expected.standard_error, torch.linalg.inv(F).diagonal().sqrt())
    assert (expected.standard_error / observed.standard_error - 1).abs().max() > 1e-3


def test_errors_of_linear_maps_and_of_functions():
    V, _ = dense("logit")
    C = torch.randn(2, k, dtype=DOUBLE, generator=seeded(5))
    beta, f = FITS["logit"], terms("logit")
    for of in (C, hesse.dense_operator(C), lambda b: C @ b):
        got = standard_errors(f, beta, of=of)
        close(got.estimate, C @ beta)
        close(got.covariance, C @ V @ C.T)
    odds = standard_errors(f, beta, of=lambda b: b[1:].exp())
    close(odds.standard_error, beta[1:].exp() * V.diagonal()[1:].sqrt())
    assert standard_errors(f, beta, of=C[0]).covariance.shape == (1, 1)


def test_intervals_are_walds():
    fit = standard_errors(terms("poisson"), FITS["poisson"])
    low, high = fit.interval(0.95)
    close(high - fit.estimate, 1.959963984540054 * fit.standard_error)
    close(low + high, 2 * fit.estimate)
    with pytest.raises(ArgumentError, match="level"):
        fit.interval(95)


def test_units_of_parameters_do_not_make_a_matrix_singular():
    scale = torch.tensor([1e-7, 1.0, 1e7, 1.0], dtype=DOUBLE)
    got = standard_errors(lambda b: logit(X @ (b / scale), TARGETS["logit"]), FITS["logit"] * scale)
    assert got.null_vectors is None
    right = standard_errors(terms("logit"), FITS["logit"]).standard_error
    torch.testing.assert_close(got.standard_error / scale, right)


def test_a_singular_information_is_reported_by_its_null_vectors():
    doubled = torch.cat([X, X[:, 1:2] + X[:, 2:3]], dim=1)
    beta = torch.cat([FITS["logit"], torch.zeros(1, dtype=DOUBLE)])

    def f(b):
        return logit(doubled @ b, TARGETS["logit"])

    with pytest.warns(UserWarning, match=r"1 direction.*params\[\d\]"):
        got = standard_errors(f, beta)
    null = got.null_vectors[:, 0] / got.null_vectors[4, 0]
    right = torch.tensor([0.0, -1.0, -1.0, 0.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(null, right, rtol=1e-6, atol=1e-6)
    single = standard_errors(terms("logit"), FITS["logit"]).standard_error
    close(got.standard_error[[0, 3]], single[[0, 3]], 1e-8)
    assert bool(got.standard_error[[1, 2, 4]].isnan().all())
    with pytest.warns(UserWarning, match="singular"):
        sums = standard_errors(f, beta, of=torch.tensor([[0.0, 1.0, 0.0, 0.0, 1.0]]))
    close(sums.standard_error[0], single[1], 1e-8)
    with (
        pytest.warns(UserWarning, match="singular"),
        pytest.raises(OperatorError, match="determined"),
    ):
        profile(f, beta, 1)


def test_a_penalty_and_a_point_that_is_no_minimum_are_told():
    model = nn.Linear(k, 1, bias=False).double()
    y = TARGETS["logit"][:, None]
    risk = hesse.Risk(model, nn.BCEWithLogitsLoss(), (X, y), weight_decay=0.1)
    x = hesse.minimize(risk, risk.params).x
    with pytest.warns(UserWarning, match="weight decay of 0.1"):
        standard_errors(risk, x)
    with pytest.warns(UserWarning, match="standard errors from the minimum"):
        far = standard_errors(terms("logit"), FITS["logit"] + 0.1)
    g = grad(lambda b: terms("logit")(b).sum())(FITS["logit"] + 0.1)
    H = hessian(lambda b: terms("logit")(b).sum())(FITS["logit"] + 0.1)
    assert abs(far.distance - float(g @ torch.linalg.solve(H, g)) ** 0.5) < 1e-10


@pytest.mark.peers
@pytest.mark.parametrize("name", LOSSES)
def test_statsmodels_gives_the_same(name):
    sm = pytest.importorskip("statsmodels.api")
    y, x, beta = TARGETS[name].numpy(), X.numpy(), FITS[name]
    model = {"logit": sm.Logit, "poisson": sm.Poisson, "probit": sm.Probit}[name](y, x)
    options = {"disp": 0, "tol": 1e-14, "maxiter": 200}
    plain = model.fit(**options)
    f = terms(name)
    close(torch.tensor(plain.params), beta, 1e-9)
    close(torch.tensor(plain.bse), standard_errors(f, beta).standard_error)
    for label, robust, keywords in (
        ("HC0", "HC0", {}),
        ("cluster", CLUSTERS, {"cov_kwds": {"groups": CLUSTERS.numpy()}}),
    ):
        theirs = model.fit(**options, cov_type=label, **keywords).bse
        close(torch.tensor(theirs), standard_errors(f, beta, robust=robust).standard_error)


# -- What is refused -------------------------------------------------------------------------------

F, B = terms("logit"), FITS["logit"]
REFUSED = {
    "f is no function": (lambda: standard_errors(3, B), StructureError),
    "no params": (lambda: standard_errors(F), ArgumentError),
    "f is a matrix": (lambda: standard_errors(lambda b: b[:, None] * b, B), FunctionError),
    "an unknown information": (lambda: standard_errors(F, B, information="x"), ArgumentError),
    "fisher of a function": (lambda: standard_errors(F, B, information="fisher"), StructureError),
    "an unknown robust form": (lambda: standard_errors(F, B, robust="HC9"), ArgumentError),
    "robust errors of a sum": (
        lambda: standard_errors(lambda b: F(b).sum(), B, robust="HC0"),
        FunctionError,
    ),
    "clusters of another length": (
        lambda: standard_errors(F, B, robust=torch.zeros(3).long()),
        ShapeError,
    ),
    "clusters that are no integers": (
        lambda: standard_errors(F, B, robust=torch.zeros(n)),
        ShapeError,
    ),
    "one cluster": (lambda: standard_errors(F, B, robust=0 * CLUSTERS), ArgumentError),
    "of does not fit": (lambda: standard_errors(F, B, of=torch.ones(2, 3)), ShapeError),
    "a maximum": (lambda: standard_errors(lambda b: -F(b), B), OperatorError),
    "NaN": (lambda: standard_errors(lambda b: F(b) * math.nan, B), NonFiniteError),
    "too many parameters": (
        lambda: standard_errors(lambda b: (b**2).sum(), torch.zeros(5000)),
        ArgumentError,
    ),
    "too few observations": (
        lambda: standard_errors(lambda b: F(b)[:4] + (b**2).sum(), B, robust="HC1"),
        ArgumentError,
    ),
    "standard errors of what is no matrix": (
        lambda: standard_errors(F, B, of="a"),
        ArgumentError,
    ),
    "profile: no such entry": (lambda: profile(F, B, 4), ArgumentError),
    "profile: no such name": (lambda: profile(F, B, "weight"), ArgumentError),
    "profile: a name of several": (
        lambda: profile(lambda p: F(p["b"]), {"b": B}, "b"),
        ArgumentError,
    ),
    "profile: level": (lambda: profile(F, B, 0, level=1.5), ArgumentError),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.remedy


def test_a_model_is_a_likelihood_with_a_tree_of_estimates():
    model = nn.Linear(k, 1, bias=False).double()
    y = TARGETS["logit"][:, None]
    risk = hesse.Risk(model, nn.BCEWithLogitsLoss(), (X, y))
    fitted = hesse.minimize(risk, risk.params).x
    fit = standard_errors(risk, fitted)
    assert fit.standard_error["weight"].shape == (1, k)
    assert functional_call(model, fitted, (X,)).shape == (n, 1)
    assert len(repr(fit).splitlines()) < 24
    ends = profile(risk, fitted, ("weight", 1))
    right = profile(F, B, 1)
    assert abs(ends.low - right.low) < 1e-5
