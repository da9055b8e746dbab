"""Laplace's approximation: dense formulas, closed forms, and numbers of laplace-torch."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

import hesse
from hesse import Risk
from hesse.apps import LowRank, laplace

N, DOUBLE = 23, torch.float64
CE = nn.CrossEntropyLoss()
NEAR = {"rtol": 1e-9, "atol": 1e-12}
TIGHT = {"max_dense": 1, "rtol": 1e-11}  # without the matrix


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


def data():
    g = seeded(1)
    X = torch.randn(N, 4, generator=g, dtype=DOUBLE)
    y = torch.randint(3, (N,), generator=g)
    x = torch.randn(2, 4, generator=g, dtype=DOUBLE)
    return X, y, x, torch.randn(N, 2, generator=g, dtype=DOUBLE)


X, Y, XT, NUMBERS = data()


def risk_of(sizes=(10, 13), loss=CE, targets=Y, model=None, decay=0.0):
    batches = list(zip(X.split(list(sizes)), targets.split(list(sizes)), strict=True))
    return Risk(net() if model is None else model, loss, batches, weight_decay=decay)


NET = net()
THETA = dict(NET.named_parameters())
SPACE = hesse.Space.of(THETA)
FLAT = SPACE.flatten(THETA).detach()
I = torch.eye(SPACE.n, dtype=DOUBLE)


def logits(flat, x):
    return functional_call(NET, SPACE.unflatten(flat), (x,))


def rows(x):
    return jacrev(logits)(FLAT, x)


def ggn():
    """Of the sum of the losses."""
    J, p = rows(X), logits(FLAT, X).softmax(1)
    B = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ian,iab,ibm->nm", J, B, J)


G, JT = ggn(), rows(XT)
FIT = -float(nn.functional.cross_entropy(logits(FLAT, X), Y, reduction="sum"))


def dense_evidence(A, D, index=slice(None)):
    P = A + torch.diag(D)
    log_ratio = torch.linalg.slogdet(P)[1] - D.log().sum()
    return float(FIT - 0.5 * (log_ratio + D @ FLAT[index] ** 2))


def dense_variance(A, D, index=slice(None)):
    J = JT[..., index]
    return torch.einsum("qan,nm,qbm->qab", J, torch.linalg.inv(A + torch.diag(D)), J)


def close(a, b, **tolerance):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), **(tolerance or NEAR))


# -- The formulas ----------------------------------------------------------------------------------


def structures():
    K = hesse.kfac_operator(risk_of(), THETA).to_dense() * N
    values, vectors = torch.linalg.eigh(G)
    top = vectors[:, -6:] * values[-6:] @ vectors[:, -6:].T
    last = torch.arange(25, SPACE.n)
    every = torch.arange(SPACE.n)
    blocks = torch.zeros_like(G)
    blocks[:25, :25], blocks[25:, 25:] = G[:25, :25], G[25:, 25:]
    return {
        "full": ({}, G, every),
        "without the matrix": (TIGHT, G, every),
        "kron": ({"structure": "kron"}, K, every),
        "diag": ({"structure": "diag"}, torch.diag(G.diagonal()), every),
        "low-rank": ({"structure": LowRank(6)}, top, every),
        "last layer": ({"structure": "last-layer"}, G[25:, 25:], last),
        "last layer by factors": (
            {"structure": "last-layer", "max_dense": 1},
            K[25:, 25:],
            last,
        ),
        "one layer": ({"where": "0.*"}, G[:25, :25], torch.arange(25)),
        "factors of one layer": (
            {"where": ["0.weight", "0.bias"], "structure": "kron"},
            K[:25, :25],
            torch.arange(25),
        ),
        "some entries": (
            {"where": [40, 3, 7]},
            G[[3, 7, 40]][:, [3, 7, 40]],
            torch.tensor([3, 7, 40]),
        ),
        "some entries without the matrix": (
            {"where": [40, 3, 7], **TIGHT},
            G[[3, 7, 40]][:, [3, 7, 40]],
            torch.tensor([3, 7, 40]),
        ),
        "a matrix": ({"structure": blocks / N}, blocks, every),
    }


STRUCTURES = structures()
FAST = ["full", "without the matrix", "last layer"]


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in STRUCTURES]
)
def test_evidence_variance_and_draws_are_those_of_the_dense_formulas(name):
    options, A, index = STRUCTURES[name]
    D = torch.full((len(index),), 0.7, dtype=DOUBLE)
    got = laplace(risk_of(decay=0.1), THETA, prior=0.7, generator=seeded(), **options)
    close(got.log_evidence.value, dense_evidence(A, D, index), rtol=1e-8, atol=0.0)
    close(got.functional_variance(XT), dense_variance(A, D, index), rtol=1e-7, atol=1e-11)
    gamma = float((A @ torch.linalg.inv(A + torch.diag(D))).trace())
    low, high = got.effective_parameters.interval
    assert low - 1e-9 <= gamma <= high + 1e-9
    # x'P x of draws from N(0, P^-1) has the mean s.
    draws = torch.cat([leaf.reshape(200, -1) for leaf in got.samples(200).values()], 1) - FLAT
    P, x = A + torch.diag(D), draws[:, index]
    squares = torch.einsum("kn,nm,km->k", x, P, x)
    assert abs(float(squares.mean()) - len(index)) < 4 * math.sqrt(2 * len(index) / 200)
    assert float(draws.abs().sum()) == pytest.approx(float(x.abs().sum()))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"structure": "kron"}, {"structure": "diag"}, TIGHT])
def test_groups_have_prior_precisions_of_their_own(options):
    D = torch.cat([torch.full((25,), 0.5), torch.full((18,), 3.0)]).double()
    got = laplace(
        risk_of(), THETA, prior=[0.5, 3.0], groups=["0.*", "2.*"], generator=seeded(), **options
    )
    A = N * got.posterior.curvature.A.to_dense()
    close(got.log_evidence.value, dense_evidence(A, D), rtol=1e-8, atol=0.0)
    close(got.functional_variance(XT), dense_variance(A, D), rtol=1e-7, atol=1e-11)
    assert got.prior_precision == {"0.*": 0.5, "2.*": 3.0}


def test_a_temperature_multiplies_the_likelihood():
    got = laplace(risk_of(), THETA, prior=0.7, temperature=0.5)
    D = torch.full((SPACE.n,), 0.7, dtype=DOUBLE)
    close(got.log_evidence.value, dense_evidence(2 * G, D) + FIT, rtol=1e-10, atol=0.0)
    close(got.functional_variance(XT), dense_variance(2 * G, D))


def test_the_weight_decay_is_a_prior_precision():
    got = laplace(risk_of(decay=0.02), THETA, prior="weight-decay")
    assert got.prior_precision == pytest.approx(0.02 * N)
    total = Risk(net(), nn.CrossEntropyLoss(reduction="sum"), (X, Y), weight_decay=0.46)
    same = laplace(total, THETA, prior="weight-decay")
    close(same.log_evidence.value, got.log_evidence.value)


# -- Numbers of laplace-torch 0.3 on this problem --------------------------------------------------

LAPLACE_TORCH = {  # evidence; the best prior precision, evidence there; probit; bridge
    "full": (
        -37.186602825933, 2.1069255252, -35.125360208449,
        [0.3501624800, 0.3108385545, 0.3389989656], [0.3723340228, 0.3913917240, 0.2362742531],
    ),
    "diag": (
        -48.099888243934, 3.5430244857, -38.164745636891,
        [0.3509445712, 0.3099587790, 0.3390966498], [0.3553285803, 0.4516354058, 0.1930360139],
    ),
    "kron": (  # weights and biases apart
        -40.967437644115, 2.7265042395, -36.610787934521,
        [0.3501705161, 0.3109518940, 0.3388775899], [0.3777667279, 0.3924030753, 0.2298301968],
    ),
    "last-layer": (
        -32.847054096164, 2.7336234968, -30.938421322428,
        [0.3512797906, 0.3092916321, 0.3394285773], [0.3537368559, 0.3120510882, 0.3342120560],
    ),
    "kron, last-layer": (
        -33.711271202753, 3.0359340631, -31.279451153878,
        [0.3513074356, 0.3092673923, 0.3394251721], [0.3619593231, 0.3094701594, 0.3285705175],
    ),
}  # fmt: skip


def biases_apart(blocks):
    """K-FAC with a block for each weight and each bias, as others have it."""
    parts = []
    for block in blocks:
        S, A = block.left.entries[0], block.right.entries[0]
        weight = hesse.kronecker_operator(S, A[:-1, :-1].contiguous())
        parts += [weight, hesse.dense_operator(S * A[-1, -1])]
    return hesse.block_diagonal_operator(parts)


@pytest.mark.parametrize("name", LAPLACE_TORCH)
def test_the_numbers_are_those_of_laplace_torch(name):
    evidence, prior, best, by_probit, by_bridge = LAPLACE_TORCH[name]
    options = {"structure": name}
    if name.startswith("kron"):
        blocks = hesse.kfac_operator(risk_of(), THETA).blocks
        is_last = name.endswith("last-layer")
        A = biases_apart(blocks[-1:] if is_last else blocks)
        options = {"structure": A, "where": "2.*" if is_last else None}
    got = laplace(risk_of(), THETA, prior=0.7, **options)
    close(got.log_evidence.value, evidence, rtol=1e-9, atol=0.0)
    close(got.predict(XT)[0], torch.tensor(by_probit, dtype=DOUBLE), rtol=1e-8, atol=0.0)
    close(got.predict(XT, "bridge")[0], torch.tensor(by_bridge, dtype=DOUBLE), rtol=1e-8, atol=0.0)
    found = laplace(risk_of(), THETA, prior="evidence", **options)
    assert found.prior_precision == pytest.approx(prior, rel=1e-6)
    close(found.log_evidence.value, best, rtol=1e-9, atol=0.0)


# -- The evidence ----------------------------------------------------------------------------------


def slope(posterior, values, noise=None):
    """The derivatives of the log evidence in the logarithms of its arguments, by differences."""
    h, found = 1e-4, []
    for k in range(len(values)):
        step = torch.zeros(len(values), dtype=DOUBLE)
        step[k] = h
        ends = [posterior.at(values * (s * step).exp(), noise).evidence().value for s in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * h))
    if noise is not None:
        ends = [posterior.at(values, noise * math.exp(s * h)).evidence().value for s in (1, -1)]
        found.append((ends[0] - ends[1]) / (2 * h))
    return torch.tensor(found)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["full", "kron", "diag"])
@pytest.mark.parametrize("groups", [None, ["*", "2.*"]])
def test_the_prior_of_the_evidence_is_its_maximum(structure, groups):
    got = laplace(risk_of(), THETA, prior="evidence", groups=groups, structure=structure)
    assert slope(got.posterior, got.posterior.prior.values).abs().max() < 1e-6


@pytest.mark.slow
def test_without_the_matrix_the_prior_of_the_evidence_is_near(tmp_path):
    exact = laplace(risk_of(), THETA, prior="evidence")
    got = laplace(risk_of(), THETA, prior="evidence", generator=seeded(), **TIGHT)
    assert got.prior_precision == pytest.approx(exact.prior_precision, rel=0.3)
    low, high = got.log_evidence.interval
    assert exact.log_evidence.value - 0.5 < low <= high <= exact.log_evidence.value + 1e-6
    assert got.products > 0
    sampled, again = (got.evidence(rtol=0.3, checkpoint=tmp_path / "file") for _ in range(2))
    assert (again.value, again.standard_error) == (sampled.value, sampled.standard_error)


def regression(outputs=2, model=None):
    targets = NUMBERS[:, :outputs] + X[:, :outputs]
    return risk_of(loss=nn.MSELoss(), targets=targets, model=model), targets


def test_the_evidence_of_a_linear_regression_is_the_density_of_its_data():
    """With theta at the maximum for this prior and noise the posterior is exactly normal."""
    s, delta = 0.6, 1.7
    model = nn.Linear(4, 2, bias=False).double()
    risk, y = regression(model=model)
    W = torch.linalg.solve(X.T @ X + s**2 * delta * torch.eye(4, dtype=DOUBLE), X.T @ y).T
    got = laplace(risk, {"weight": W.contiguous()}, prior=delta, noise=s)
    K = s**2 * torch.eye(N, dtype=DOUBLE) + X @ X.T / delta
    density = torch.distributions.MultivariateNormal(torch.zeros(N, dtype=DOUBLE), K)
    close(got.log_evidence.value, float(density.log_prob(y.T).sum()), rtol=1e-11, atol=0.0)
    mean, variance = got.predict(XT)
    V = torch.linalg.inv(X.T @ X / s**2 + delta * torch.eye(4, dtype=DOUBLE))
    close(mean, XT @ W.T)
    close(variance, ((XT @ V) * XT).sum(1, keepdim=True).expand(2, 2) + s**2)


def test_a_regression_learns_its_noise():
    risk, y = regression(model=net(2))
    got = laplace(risk, None, prior="evidence")
    found = slope(got.posterior, got.posterior.prior.values, got.noise)
    assert found.abs().max() < 1e-6
    half = risk_of(loss=lambda z, t: 0.5 * nn.functional.mse_loss(z, t), targets=y, model=net(2))
    same = laplace(half, None, prior="evidence")  # the same likelihood at another scale
    assert same.noise == pytest.approx(got.noise, rel=1e-9)
    close(same.log_evidence.value, got.log_evidence.value)


def test_a_regression_has_the_numbers_of_laplace_torch():
    risk = risk_of(loss=nn.MSELoss(), targets=NUMBERS, model=net(2))
    given = laplace(risk, prior=0.7, noise=0.6, structure="last-layer")
    close(given.log_evidence.value, -143.138787211253, rtol=1e-9, atol=0.0)
    variance = torch.tensor([0.055921394559961875, 0.09742237559950878], dtype=DOUBLE)
    close(given.functional_variance(XT), variance[:, None, None] * torch.eye(2, dtype=DOUBLE))
    best = laplace(risk, prior="evidence", structure="last-layer")
    assert best.noise == pytest.approx(1.3726511315, rel=1e-7)
    assert best.prior_precision == pytest.approx(3.7636319282, rel=1e-6)
    close(best.log_evidence.value, -83.186199372079, rtol=1e-9, atol=0.0)
