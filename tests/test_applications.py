"""What holds for every application: ragged batches, structured operators, killed runs, refusals."""

import inspect
import re
import warnings
from collections import Counter

import pytest
import torch
from torch import nn

import hesse
from hesse import HesseError, Risk, apps
from hesse.checkpoint import Checkpoint
from tests import (
    test_curvature_tracker,
    test_implicit,
    test_influence_refusals,
    test_landscape,
    test_laplace_predictions,
    test_physics,
    test_prune,
    test_statistics,
    test_tangent_kernels,
)
from tests.application_refusals import MORE
from tests.influence_problem import SPACE, THETA, XQ, YQ, N, X, Y, ggn, net, risk_of
from tests.refusals import assert_refused

FLOAT = {"dtype": torch.float64}
ONE, RAGGED = risk_of(), risk_of([9, 9, 5])
HALF = {name: 0.5 * p for name, p in THETA.items()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def regression(sizes=N):
    """A linear regression whose losses are a negative log-likelihood, at its minimum."""
    y = (X @ torch.arange(1.0, 5.0, **FLOAT)[:, None]) + 0.1 * X[:, :1].sin()
    model = nn.Linear(4, 1, bias=False).double()
    data = list(zip(X.split(sizes), y.split(sizes), strict=True))
    risk = Risk(model, nn.MSELoss(reduction="sum"), data)
    weight = torch.linalg.lstsq(X, y).solution.T.contiguous()
    return risk, {"weight": weight}


def leaves(tree):
    return torch.cat([leaf.reshape(-1).double() for leaf in hesse.Space.of(tree).leaves(tree)])


# -- Ragged batches --------------------------------------------------------------------------------


def inner(risk):
    """The risk with a weight decay that is a parameter."""
    return lambda p, l: risk(p) + l * sum((v**2).sum() for v in p.values())


L = torch.tensor(0.1, **FLOAT)


def minimiser(function, risk):
    """x(l) of an implicit function, from near the minimum."""
    return leaves(function(inner(risk), THETA)(L))


def newton_map(risk):
    """A map whose fixed point is where the gradient of the penalised risk is zero."""
    slope = torch.func.grad(inner(risk))

    def step(p, l):
        g = slope(p, l)
        return {name: v - g[name] for name, v in p.items()}

    return step


def gradient(risk):
    return lambda p, l: torch.func.grad(inner(risk))(p, l)


def tracked(risk):
    tracker = apps.CurvatureTracker(risk, every=1, budget=None, generator=seeded())
    tracker.step(None, 0.1)
    (row,) = tracker.history
    return torch.tensor([row.loss, *row.eigenvalues], **FLOAT)


RISKS = {
    "influence": lambda risk: apps.influence(risk, THETA, (XQ, YQ), rtol=1e-11).scores,
    "self_influence": lambda risk: apps.self_influence(risk, THETA, rtol=1e-11).scores,
    "prune": lambda risk: leaves(
        apps.prune(risk, THETA, 0.5, damping=0.1, repair=apps.Repair(rtol=1e-11)).params
    ),
    "laplace": lambda risk: apps.laplace(risk, THETA).functional_variance(XQ),
    "argmin": lambda risk: minimiser(apps.argmin, risk),
    "root": lambda risk: leaves(apps.root(gradient(risk), THETA)(L)),
    "fixed_point": lambda risk: leaves(apps.fixed_point(newton_map(risk), THETA)(L)),
    "hypergradient": lambda risk: (
        apps.hypergradient(
            *(lambda p, l: p["0.weight"].sum(), inner(risk)), THETA, 0 * L, rtol=1e-11
        ).gradient
    ),
    "ntk": lambda risk: apps.ntk(risk, THETA).to_dense(),
    "CurvatureTracker": tracked,
    "landscape": lambda risk: apps.landscape(risk, THETA, grid=3, generator=seeded()).quadratic,
    "modes": lambda risk: apps.modes(risk, THETA, rigid="none").eigenvalues,
    "saddle": lambda risk: leaves(
        apps.saddle(risk, HALF, rigid="none", max_iterations=3, radius=0.01).x
    ),
    "response": lambda risk: leaves(apps.response(inner(risk), THETA, 0 * L).derivative),
}
SUMS = {  # of losses that are a negative log-likelihood, or squares
    "linearised": lambda risk, at: leaves(apps.linearised(risk, at).fit(ridge=0.1).change),
    "standard_errors": lambda risk, at: leaves(apps.standard_errors(risk, at).standard_error),
    "profile": lambda risk, at: torch.tensor(
        [apps.profile(risk, at, 1).low, apps.profile(risk, at, 1).high], **FLOAT
    ),
}


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("app", RISKS)
def test_ragged_batches_give_what_one_batch_gives(app):
    torch.testing.assert_close(RISKS[app](RAGGED), RISKS[app](ONE), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("app", SUMS)
def test_ragged_batches_of_a_sum_give_what_one_batch_gives(app):
    got, expected = SUMS[app](*regression([9, 9, 5])), SUMS[app](*regression())
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)


# -- Structured operators --------------------------------------------------------------------------

n = SPACE.n
POSITIVE = torch.linspace(0.5, 2.0, n, **FLOAT)
I = hesse.identity_operator(n, **FLOAT)
U = torch.randn(n, 4, generator=seeded(), **FLOAT)
FACTORS = [
    (lambda B: hesse.dense_operator(B @ B.T + torch.eye(len(B)).to(B)))(
        torch.randn(k, k, generator=seeded(k), **FLOAT)
    )
    for k in (1, 43, 20, 23)
]
OPERATORS = {
    "dense": hesse.dense_operator(ggn()),
    "diagonal": hesse.diagonal_operator(POSITIVE),
    "block diagonal": hesse.block_diagonal_operator(FACTORS[2:]),
    "Kronecker": hesse.kronecker_operator(*FACTORS[:2]),
    "low rank and identity": hesse.low_rank_operator(U, torch.ones(4, **FLOAT)) + 0.5 * I,
    "a sum": hesse.diagonal_operator(POSITIVE) + hesse.dense_operator(ggn()),
    "K-FAC": hesse.kfac_operator(ONE, THETA) + 0.1 * I,
    "EK-FAC": hesse.ekfac_operator(ONE, THETA) + 0.1 * I,
    "Hessian": hesse.hessian_operator(ONE, THETA),
}
TARGETS = torch.randn(n, generator=seeded(), **FLOAT)


def of_laplace(A):
    """With the part that is a multiple of the identity taken out: it would be a weight decay."""
    shift = A._split_shift()[1] if isinstance(A, hesse.LinearOperator) else 0.0
    rest = A - shift * I if shift else A
    risk = Risk(net(), nn.CrossEntropyLoss(), (X, Y))
    return apps.laplace(risk, THETA, structure=rest, prior=1.0, rtol=1e-11).functional_variance(XQ)


TAKE_OPERATORS = {
    "influence": lambda A: apps.influence(ONE, THETA, (XQ, YQ), curvature=A, rtol=1e-11).scores,
    "self_influence": lambda A: apps.self_influence(ONE, THETA, curvature=A, rtol=1e-11).scores,
    "prune": lambda A: leaves(
        apps.prune(ONE, THETA, 0.5, curvature=A, damping=0.1, repair=apps.Repair(rtol=1e-11)).params
    ),
    "alignment": lambda A: torch.tensor(apps.alignment(A, TARGETS, rtol=1e-10).value),
    "hypergradient": lambda A: (
        apps.hypergradient(
            *(lambda p, l: p["0.weight"].sum(), inner(ONE)),
            THETA,
            0 * L,
            rtol=1e-11,
            preconditioner=A,
        ).gradient
    ),
}


@pytest.mark.some_cases(27)
@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("kind", OPERATORS)
@pytest.mark.parametrize("app", TAKE_OPERATORS)
def test_a_structured_operator_gives_what_its_matrix_gives(app, kind):
    A = OPERATORS[kind]
    matrix = hesse.dense_operator((A.to_dense() + A.to_dense().T) / 2)
    take = TAKE_OPERATORS[app]
    torch.testing.assert_close(take(A), take(matrix), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [k for k in OPERATORS if k != "Hessian"])
def test_laplace_takes_them_without_their_multiple_of_the_identity(kind):
    A = OPERATORS[kind]
    shift = A._split_shift()[1]
    matrix = A.to_dense() - shift * torch.eye(n, **FLOAT)
    matrix = hesse.dense_operator((matrix + matrix.T) / 2)
    torch.testing.assert_close(of_laplace(A), of_laplace(matrix), rtol=1e-6, atol=1e-9)


# -- progress=, generator= and checkpoint= ---------------------------------------------------------

PASSES = {
    "influence": "progress generator checkpoint",
    "self_influence": "progress generator checkpoint",
    "prune": "progress generator checkpoint",
    "laplace": "progress generator checkpoint",
    "linearised": "progress generator checkpoint",
    "alignment": "progress generator checkpoint",
    "landscape": "progress generator checkpoint",
    "modes": "progress generator checkpoint",
    "hypergradient": "progress generator checkpoint",
    "saddle": "progress checkpoint",  # draws nothing that a caller would choose
    "response": "progress checkpoint",  # likewise
    "argmin": "progress generator",  # one call of an outer loop; solve= takes a checkpoint
    "root": "progress generator",
    "fixed_point": "progress generator",
    "ntk": "generator",  # an operator: nothing runs
    "CurvatureTracker": "generator",  # a part of a training; `state_dict` goes with its state
    "standard_errors": "",  # at most 4,096 products, and draws nothing
    "profile": "",  # likewise, and some ten minimisations
    "lds": "",  # arithmetic
}


def test_every_application_is_in_the_table():
    verbs = {name for name in apps.__all__ if name[0].islower()} | {"CurvatureTracker"}
    assert set(PASSES) == verbs


@pytest.mark.parametrize("app", PASSES)
def test_long_runs_show_progress_draw_repeatably_and_are_saved(app):
    called = apps.Linearised.fit if app == "linearised" else getattr(apps, app)
    given = set(inspect.signature(called).parameters)
    assert given & {"progress", "generator", "checkpoint"} == set(PASSES[app].split())


def wells(x):
    return x[0] ** 4 / 4 - x[0] ** 2 / 2 + 2 * x[1] ** 2 + (x[1:-1] * x[2:]).sum() + (x**2).sum()


def chain(x):
    """A ring of springs of different stiffness."""
    steps = (x - x.roll(1, 0)).norm(dim=1)
    return (torch.linspace(1.0, 2.0, len(x), **FLOAT) * (steps - 1.0) ** 2).sum()


ANGLES = torch.arange(60, **FLOAT) * 2 * torch.pi / 60
RING = torch.stack([ANGLES.cos(), ANGLES.sin(), 0.1 * ANGLES.cos() ** 2], 1) / (2 * 0.05234)
WIDE = torch.randn(40, 30, generator=seeded(), **FLOAT)
MANY = hesse.function_operator(lambda v: WIDE @ (WIDE.T @ v), 40, symmetric=True, **FLOAT)
SAVED = {
    "influence": lambda **c: apps.influence(ONE, THETA, (XQ, YQ), rtol=1e-11, **c).scores,
    "influence, Newton": lambda **c: (
        apps.influence(
            ONE, THETA, (XQ, YQ), removal="newton", groups=[[0], [1, 2], [3]], **c
        ).scores
    ),
    "self_influence": lambda **c: apps.self_influence(ONE, THETA, most=6, **c).scores,
    "laplace, evidence": lambda **c: torch.tensor(
        apps.laplace(ONE, THETA, prior="evidence", max_dense=1, **c).prior_precision
    ),
    "laplace, held out": lambda **c: torch.tensor(
        apps.laplace(
            ONE, THETA, prior="held-out", held_out=(XQ, YQ), max_dense=1, **c
        ).prior_precision
    ),
    "linearised": lambda **c: leaves(
        apps.linearised(net()).fit(X, torch.ones(N, 3, **FLOAT), ridge=0.01, rtol=1e-10, **c).change
    ),
    "alignment": lambda **c: torch.tensor(
        apps.alignment(MANY, torch.linspace(-1, 1, 40, **FLOAT), rtol=0.05, **c).value
    ),
    "landscape": lambda **c: apps.landscape(RAGGED, THETA, grid=3, **c).values,
    "modes": lambda **c: (
        apps.modes(chain, RING, k=3, rigid="none", max_products=200, **c).eigenvalues
    ),
    "saddle": lambda **c: (
        apps.saddle(
            wells, torch.linspace(-1.0, 0.5, 70, **FLOAT), rigid="none", max_iterations=6, **c
        ).x
    ),
    "response": lambda **c: (
        apps.response(
            lambda x, q: (POSITIVE * x**2).sum() - q * x.sum(), torch.zeros(n, **FLOAT), 0 * L, **c
        ).derivative
    ),
    "hypergradient": lambda **c: (
        apps.hypergradient(
            *(lambda p, l: p["0.weight"].sum(), inner(ONE)), THETA, 0 * L, estimate_error=False, **c
        ).gradient
    ),
}


class Killed(BaseException):
    """As by `kill -9`, after a save."""


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("app", SAVED)
def test_a_killed_run_goes_on_to_the_same_result(app, tmp_path, monkeypatch):
    """To the same bits if those of the products are; here these change from graphs to programs."""
    save, resume, saves, resumed = Checkpoint.save, Checkpoint.resume, [], []

    def run(file):
        given = {} if app in ("saddle", "response") else {"generator": seeded()}
        with hesse.deterministic(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a step that is cut short, as in the search of modes
            return SAVED[app](checkpoint=tmp_path / file, **given)

    def dies_at_the_second(self, state, *, now=False):
        save(self, state, now=True)
        saves.extend([self.path] * (self.path is not None))
        if len(saves) == 2:
            raise Killed

    whole = run("whole")
    monkeypatch.setattr(Checkpoint, "save", dies_at_the_second)
    with pytest.raises(Killed):
        run("run")
    monkeypatch.setattr(Checkpoint, "save", save)
    monkeypatch.setattr(
        Checkpoint, "resume", lambda self, state: resumed.append(resume(self, state)) or resumed[-1]
    )
    rest = run("run")
    assert any(resumed)
    torch.testing.assert_close(rest, whole, rtol=1e-6, atol=1e-9)


# -- What is refused -------------------------------------------------------------------------------

TABLES = (
    test_curvature_tracker,
    test_implicit,
    test_influence_refusals,
    test_landscape,
    test_laplace_predictions,
    test_physics,
    test_statistics,
    test_tangent_kernels,
)
CASES = [(app, name) for app, table in MORE.items() for name in table]


@pytest.mark.parametrize(("app", "name"), CASES)
def test_is_refused_with_a_remedy(app, name):
    assert_refused(*MORE[app][name])


def refusing(call):
    """The name of the function that refuses a call."""
    try:
        call()
    except HesseError as error:
        found = re.match(r"hesse\.apps\.(\w+)|(ArgMin)\(", error.call)
        return None if found is None else found[1] or "argmin"
    raise AssertionError("it is not refused")


def test_every_application_has_eight_tested_refusals():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counts = Counter(refusing(case[0]) for table in TABLES for case in table.REFUSED.values())
    counts.update({app: len(table) for app, table in MORE.items()})
    counts["prune"] = len(test_prune.REFUSED)
    assert {app: counts[app] for app in PASSES if counts[app] < 8} == {}
