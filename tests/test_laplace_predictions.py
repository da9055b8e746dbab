"""Predictions of Laplace's approximation, the choice of its prior by held-out data; refusals."""

import math

import pytest
import torch
from torch import nn

import hesse
from hesse import Risk
from hesse.apps import Normal, laplace
from tests.refusals import assert_refused

DOUBLE = torch.float64
CE = nn.CrossEntropyLoss()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(outputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()


X = torch.randn(40, 4, generator=seeded(1), dtype=DOUBLE)
Y = (X @ torch.randn(4, 3, generator=seeded(2), dtype=DOUBLE)).argmax(1)
NET = net()
XT, YT = X[30:], Y[30:]
DATA = [(X[:9], Y[:9]), (X[9:30], Y[9:30])]
RISK = Risk(net(), CE, DATA, weight_decay=0.01)
THETA = hesse.minimize(RISK, RISK.params, atol=1e-6, rtol=0.0).x
FULL = laplace(RISK, THETA, prior=0.3, generator=seeded())
F = torch.func.functional_call(net(), THETA, (XT,)).detach()
C = FULL.functional_variance(XT)


def close(a, b, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=rtol, atol=atol)


# -- Links -----------------------------------------------------------------------------------------


def test_probit_and_draws_are_what_they_say():
    scaled = F / (1 + math.pi / 8 * C.diagonal(dim1=1, dim2=2)).sqrt()
    close(FULL.predict(XT), scaled.softmax(1))
    sampled = torch.distributions.MultivariateNormal(F, C + 1e-12 * torch.eye(3))
    torch.manual_seed(0)
    expected = sampled.sample((20000,)).softmax(-1).mean(0)
    close(FULL.predict(XT, "draws", draws=20000), expected, rtol=0.0, atol=0.02)
    close(FULL.predict(XT, "bridge").sum(1), torch.ones(10, dtype=DOUBLE))


@pytest.mark.slow
def test_draws_without_the_matrix_are_of_the_same_distribution():
    got = laplace(RISK, THETA, prior=0.3, max_dense=1, rtol=1e-8, generator=seeded())
    close(got.functional_variance(XT), C, rtol=1e-6, atol=1e-9)
    exact = FULL.predict(XT, "draws", draws=20000)
    close(got.predict(XT, "draws", draws=500), exact, rtol=0.0, atol=0.08)
    rough = got.functional_variance(XT, draws=500)
    ratio = rough.diagonal(dim1=1, dim2=2).sum() / C.diagonal(dim1=1, dim2=2).sum()
    assert abs(float(ratio) - 1.0) < 4 * math.sqrt(2 / 500)
    again = got.functional_variance(XT, draws=500)
    assert torch.equal(rough, again)  # the same draws
    assert not torch.equal(got.samples(2)["0.bias"], got.samples(2)["0.bias"])  # others


@pytest.mark.slow
def test_network_draws_go_through_the_network():
    tight = laplace(RISK, THETA, prior=1e10, generator=seeded())
    close(tight.predict(XT, "network", draws=3), F.softmax(1), rtol=0.0, atol=1e-3)
    wide = FULL.predict(XT, "network", draws=50)
    assert (wide - FULL.predict(XT, "draws", draws=1000)).abs().max() > 0.02


def test_one_output_for_two_classes():
    y = (Y[:30] == 0).double()[:, None]
    risk = Risk(net(1), nn.BCEWithLogitsLoss(), (X[:30], y), weight_decay=0.02)
    got = laplace(risk, prior=0.5, held_out=(XT, (YT == 0).double()[:, None]))
    z = risk.model(XT).detach()
    v = got.functional_variance(XT)[:, :, 0]
    close(got.predict(XT), (z / (1 + math.pi / 8 * v).sqrt()).sigmoid())
    table = got.calibration()
    p = z.sigmoid()[:, 0]
    nll = nn.functional.binary_cross_entropy(p, (YT == 0).double())
    assert table["MAP"]["NLL"] == pytest.approx(float(nll))
    assert table["MAP"]["accuracy"] == pytest.approx(
        float(((p > 0.5) == (YT == 0)).double().mean())
    )


@pytest.mark.slow
def test_outputs_with_places_keep_their_shape():
    class Places(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 6).double()

        def forward(self, x):
            return self.head(x).view(-1, 3, 2)

    torch.manual_seed(0)
    y = torch.stack([Y[:30], Y[:30].flip(0)], 1)
    got = laplace(Risk(Places(), CE, (X[:30], y)), prior=1.0, generator=seeded())
    assert got.functional_variance(XT).shape == (10, 6, 6)
    for link in ("probit", "draws", "network"):
        p = got.predict(XT, link)
        assert p.shape == (10, 3, 2)
        close(p.sum(1), torch.ones(10, 2, dtype=DOUBLE))
    assert got.posterior.observations.number == pytest.approx(60)


# -- Data and models of all kinds ------------------------------------------------------------------


class OfFields(nn.Module):
    """A model of keyword arguments."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, a, b):
        return {"logits": self.inner(torch.cat([a, b], 1))}


def fields(x):
    return {"a": x[:, :1], "b": x[:, 1:]}


def test_mappings_as_inputs_and_outputs_that_are_trees():
    def loss(outputs, y):
        return nn.functional.cross_entropy(outputs["logits"], y)

    data = [(fields(x), y) for x, y in DATA]
    params = {f"inner.{name}": leaf for name, leaf in THETA.items()}
    got = laplace(Risk(OfFields(net()), loss, data), params, prior=0.3)
    close(got.log_evidence.value, FULL.log_evidence.value)
    close(got.functional_variance(fields(XT)), C)
    close(got.predict(fields(XT)), FULL.predict(XT))
    table = got.calibration((fields(XT), YT))
    assert table["Laplace"] == FULL.calibration((XT, YT))["Laplace"]


@pytest.mark.slow
def test_a_function_of_a_tree_and_a_loader_in_single_precision():
    def model(p, x):
        return (x @ p["in"]).tanh() @ p["out"]

    params = {"in": torch.randn(4, 5, generator=seeded()), "out": torch.zeros(5, 3)}
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X[:30].float(), Y[:30]), batch_size=8
    )
    risk = Risk(model, CE, loader, weight_decay=0.03, params=params)
    theta = hesse.minimize(risk, params).x
    for prior in (1e-3, "evidence"):
        single = laplace(risk, theta, prior=prior)
        wide = {k: v.double() for k, v in theta.items()}
        double = laplace(Risk(model, CE, (X[:30], Y[:30]), params=wide), wide, prior=prior)
        close(single.log_evidence.value, double.log_evidence.value, rtol=1e-4, atol=0.0)
        assert single.prior_precision == pytest.approx(double.prior_precision, rel=1e-3)
    close(single.functional_variance(XT.float()).double(), double.functional_variance(XT), 1e-2)


@pytest.mark.slow
def test_the_last_layer_of_many_classes_never_has_a_jacobian():
    """800 classes and 400 features: J of 20 inputs would take 41 GB."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 400), nn.Tanh(), nn.Linear(400, 800))
    y = torch.randint(800, (30,), generator=seeded())
    risk = Risk(model, CE, (X[:30].float(), y))
    got = laplace(risk, structure="last-layer", prior=1.0, generator=seeded())
    last = {name: leaf for name, leaf in risk.params.items() if name.startswith("2")}
    K = hesse.kfac_operator(risk, last, generator=seeded())  # by the same random signs
    V = hesse.inverse_operator(30 * K + hesse.identity_operator(K.shape[0], dtype=K.dtype))
    covariance = got.functional_variance(XT.float())
    phi = torch.cat([model[:2](XT.float()), torch.ones(10, 1)], 1).detach()
    e = torch.zeros(800, 401)
    e[7] = phi[3]
    row = {"2.weight": e[:, :400].contiguous(), "2.bias": e[:, 400].contiguous()}
    x = V @ row
    expected = x["2.weight"] @ phi[3, :400] + x["2.bias"]
    close(covariance[3, 7], expected, rtol=1e-3, atol=1e-5)


# -- Held-out data ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"structure": "kron"}, {"structure": "last-layer"}])
def test_the_prior_of_held_out_data_is_the_best_of_the_grid(options):
    got = laplace(RISK, THETA, prior="held-out", held_out=(XT, YT), **options)
    A = 30 * got.posterior.curvature.A.to_dense()
    params = hesse.Space.of(THETA)
    f = torch.func.jacrev(lambda v: torch.func.functional_call(NET, params.unflatten(v), (XT,)))
    J, losses = f(params.flatten(THETA))[..., -len(A) :], {}
    for delta in 10.0 ** torch.linspace(-4.0, 6.0, 41, dtype=DOUBLE):
        V = torch.linalg.inv(A + delta * torch.eye(len(A), dtype=DOUBLE))
        variance = torch.einsum("qdn,nm,qdm->qd", J, V, J)
        p = (F / (1 + math.pi / 8 * variance).sqrt()).softmax(1)
        losses[float(delta)] = float(nn.functional.nll_loss(p.log(), YT))
    assert got.prior_precision == min(losses, key=losses.__getitem__)
    assert got.calibration()["Laplace"]["NLL"] == pytest.approx(min(losses.values()))


@pytest.mark.slow
def test_held_out_data_choose_a_prior_without_the_matrix_and_of_a_regression():
    options = {"max_dense": 1, "generator": seeded()}
    got = laplace(RISK, THETA, prior="held-out", held_out=(XT, YT), **options)
    assert 1e-2 <= got.prior_precision <= 1e4
    model = nn.Linear(4, 1).double()
    noise = torch.randn(40, 1, generator=seeded(3), dtype=DOUBLE)
    y = X[:, :1] + 0.1 * noise
    risk = Risk(model, nn.MSELoss(), (X[:30], y[:30]))
    theta = hesse.minimize(risk, risk.params, atol=1e-9, rtol=0.0).x
    found = laplace(risk, theta, prior="held-out", held_out=(XT, y[30:]))
    table = found.calibration()
    mean, variance = found.predict(XT)
    assert isinstance(found.predict(XT, "network"), Normal)
    nll = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(y[30:]).mean()
    assert table["Laplace"]["NLL"] == pytest.approx(float(nll))
    rmse = float((mean - y[30:]).square().mean().sqrt())
    assert table["MAP"]["RMSE"] == pytest.approx(rmse)
    assert table["temperature"]["NLL"] <= table["MAP"]["NLL"]


def test_the_calibration_table_has_the_scores_of_its_definitions():
    table = FULL.calibration((XT, YT))
    p = F.softmax(1)
    assert table["MAP"]["NLL"] == pytest.approx(float(nn.functional.cross_entropy(F, YT)))
    brier = (p - nn.functional.one_hot(YT, 3)).square().sum(1).mean()
    assert table["MAP"]["Brier"] == pytest.approx(float(brier))
    assert table["MAP"]["accuracy"] == pytest.approx(float((p.argmax(1) == YT).double().mean()))
    grid = torch.logspace(-1, 1, 400, dtype=DOUBLE)
    best = min(float(nn.functional.cross_entropy(F / T, YT)) for T in grid)
    assert table["temperature"]["NLL"] <= best
    assert table["temperature"]["NLL"] == pytest.approx(best, rel=1e-3)
    assert "the same data" in table.note
    held = laplace(RISK, THETA, prior=0.3, held_out=(XT, YT))
    assert "held-out data" in held.calibration((X[:9], Y[:9])).note
    assert repr(held.calibration()) in "\n".join(line[2:] for line in repr(held).splitlines())
    assert "<table>" in held._repr_html_()


# -- What is refused -------------------------------------------------------------------------------


def refuse(**options):
    return lambda: laplace(RISK, THETA, **options)


def risk_with(loss, targets=Y[:30], outputs=3, **options):
    return Risk(net(outputs), loss, (X[:30], targets), **options)


class Tail(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        return 2 * self.body(x)


REFUSED = {
    "a function for a risk": (lambda: laplace(lambda p: p, THETA), "hesse.Risk"),
    "a loss that is no likelihood": (
        lambda: laplace(risk_with(lambda z, y: z.square().sum(1).mean())),
        "a loss that is a likelihood",
    ),
    "a penalty in the loss": (
        lambda: laplace(
            Risk(
                lambda p, x: (x @ p["w"], p["w"]),
                lambda z, y: CE(z[0], y) + z[1].square().sum(),
                (X[:30], Y[:30]), params={"w": torch.randn(4, 3, dtype=DOUBLE)},
            )
        ),
        "weight_decay=",
    ),
    "a likelihood without a predictive distribution": (
        lambda: laplace(risk_with(nn.PoissonNLLLoss(), X[:30, :3].abs().round())),
        "have a predictive distribution",
    ),
    "class weights": (
        lambda: laplace(risk_with(nn.CrossEntropyLoss(weight=torch.arange(1.0, 4.0).double()))),
        "counts alike",
    ),
    "a name of no structure": (refuse(structure="kfac"), "structure to be one of"),
    "a negative prior": (refuse(prior=-1.0), "a positive precision"),
    "a prior of zero": (refuse(prior=0.0), "small precision"),
    "a name of no prior": (refuse(prior="marglik"), "prior to be one of"),
    "priors that do not fit the groups": (refuse(prior=[1.0, 2.0, 3.0]), "one for each of 1"),
    "groups that leave parameters": (refuse(groups=["0.*"]), "in one of them"),
    "a group for a weight without its bias": (
        refuse(structure="kron", groups="parameter", prior=[1.0, 2.0, 3.0, 4.0]),
        "equal within each block",
    ),
    "held-out data that are not there": (refuse(prior="held-out"), "held_out="),
    "held-out data for groups": (
        refuse(prior="held-out", held_out=(XT, YT), groups="parameter"), "one prior precision",
    ),
    "a weight decay that is not there": (
        lambda: laplace(risk_with(CE), prior="weight-decay"), "with a weight decay",
    ),
    "regularising twice": (
        lambda: laplace(RISK, THETA, structure=hesse.ggn_operator(RISK, THETA)),
        "regularise twice",
    ),
    "an operator of another size": (
        refuse(structure=hesse.identity_operator(3)), "symmetric operator of shape",
    ),
    "an indefinite matrix": (
        refuse(structure=torch.diag(torch.linspace(-1.0, 1.0, 43, dtype=DOUBLE))),
        "negative eigenvalues",
    ),
    "an indefinite Hessian without the matrix": (
        lambda: laplace(
            risk_with(CE), structure=hesse.hessian_operator(risk_with(CE)), prior=1e-6
        ).functional_variance(XT),
        "negative curvature",
    ),
    "evidence of an operator without a root": (
        refuse(structure=hesse.hessian_operator(RISK.with_loss(CE), THETA) - 0.01
               * hesse.identity_operator(43, dtype=DOUBLE), prior="evidence"),
        "a known root",
    ),
    "evidence of parameters that are zero": (
        lambda: laplace(RISK, {k: 0 * v for k, v in THETA.items()}, prior="evidence"),
        "all zero",
    ),
    "a part of a block of K-FAC": (
        refuse(structure="kron", where=[0, 1, 2]), "as a whole",
    ),
    "where beside the last layer": (refuse(structure="last-layer", where="2.*"), "no where="),
    "a model that does not end in a linear layer": (
        lambda: laplace(Risk(Tail(), CE, (X[:30], Y[:30])), structure="last-layer"),
        "the result of an nn.Linear",
    ),
    "noise of a classification": (refuse(noise=0.3), "of a classification"),
    "noise that is none": (
        lambda: laplace(risk_with(nn.MSELoss(), X[:30, :2], 2), noise=-1.0),
        "a standard deviation",
    ),
    "a temperature of zero": (refuse(temperature=0.0), "temperature > 0"),
    "a perfect fit": (
        lambda: laplace(
            risk_with(nn.MSELoss(), net(2)(X[:30]).detach(), 2), prior="evidence"
        ),
        "noise can be learnt",
    ),
    "no link": (lambda: FULL.predict(XT, "softmax"), "link to be one of"),
    "a bridge for numbers": (
        lambda: laplace(risk_with(nn.MSELoss(), X[:30, :2], 2)).predict(XT, "bridge"),
        "a row of logits",
    ),
    "a table of no data": (lambda: FULL.calibration(), "data for the table"),
    "no draws": (lambda: FULL.samples(0), "count"),
    "inputs with their targets": (lambda: FULL.predict((XT, YT[:3])), "inputs alone"),
    "no inputs": (lambda: FULL.predict(XT[:0]), "at least one example"),
    "targets that are probabilities": (
        lambda: FULL.calibration((XT, torch.full((10, 3), 1 / 3, dtype=DOUBLE))),
        "targets that are classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])
