"""Curvature over training: against dense matrices, with a clock of its own, without a trace."""

import csv
import io
import itertools
import json
import math
import types
import warnings

import pytest
import torch
from torch import nn

import hesse
from hesse import HesseError, Risk
from hesse.apps import CurvatureTracker
from hesse.apps.training.time_budget import TimeBudget
from tests.refusals import assert_refused
from tests.tracked_risks import BATCHES, CE, DECAY, FLOAT, N, X, Y, forever, net, risk

# -- What is measured ------------------------------------------------------------------------------


def test_numbers_are_those_of_dense_matrices():
    R = risk()
    row = CurvatureTracker(R, top=2, per_layer=True, trace=True, noise=N).step(
        learning_rate=0.1, momentum=0.5
    )
    space = hesse.Space.of(R.params)
    theta = space.flatten(R.params)

    def losses(v):
        z = torch.func.functional_call(R.model, space.unflatten(v), (X,))
        return nn.functional.cross_entropy(z, Y, reduction="none")

    def total(v):
        return losses(v).mean() + DECAY / 2 * (v @ v)

    H, g = torch.func.hessian(total)(theta), torch.func.grad(total)(theta)
    values, vectors = torch.linalg.eigh(H)
    near = {"rel": 1e-3}
    assert row.loss == pytest.approx(float(total(theta)))
    assert row.gradient_norm == pytest.approx(float(g.norm()))
    assert row.eigenvalues == pytest.approx(values[-2:].flip(0).tolist(), **near)
    assert row.sharpness == row.eigenvalues[0]
    dense = hesse.ggn_operator(R, R.params).to_dense()
    assert row.ggn_sharpness == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), **near)
    share = (vectors[:, -2:].T @ g).square().sum() / (g @ g)
    assert row.gradient_share == pytest.approx(float(share), rel=0.02)
    assert abs(row.trace - float(H.trace())) <= 4 * row.trace_error + 1e-9
    blocks = {"0": slice(0, 25), "2": slice(25, 43)}
    tops = {name: float(torch.linalg.eigvalsh(H[s, s])[-1]) for name, s in blocks.items()}
    assert row.layers == pytest.approx(tops, **near)
    each = torch.func.jacrev(losses)(theta)
    d = each - each.mean(0)
    S = d.T @ d / (N - 1)
    assert row.noise_scale == pytest.approx(float(S.trace() / (g @ g)))
    assert row.curvature_noise_scale == pytest.approx(float((H @ S).trace() / (g @ H @ g)))
    assert row.stability == pytest.approx(row.sharpness * 0.1 / 2 / 1.5)
    assert row.largest_rate == pytest.approx(2 * 1.5 / row.sharpness)
    assert row.products > 0


@pytest.mark.slow
def test_the_noise_of_a_sum_is_that_of_its_mean():
    total = Risk(net(), nn.CrossEntropyLoss(reduction="sum"), BATCHES, weight_decay=N * DECAY)
    rows = [CurvatureTracker(R, noise=10).step() for R in (risk(), total)]
    assert rows[0].noise_scale == pytest.approx(rows[1].noise_scale)
    assert rows[0].curvature_noise_scale == pytest.approx(rows[1].curvature_noise_scale)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.6, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.5},
        {"dampening": 0.5},
        {"weight_decay": 4.0},
        {"momentum": 0.5, "weight_decay": 4.0},
    ],
)
def test_the_limit_of_stability_is_that_of_steps_on_a_quadratic(options):
    """|x| grows above it and falls below it, by torch's own optimizer."""
    decay = options.get("weight_decay", 0.0)
    for factor, grows in ((0.95, False), (1.05, True)):
        p = nn.Parameter(torch.ones(1, **FLOAT))
        optimizer = torch.optim.SGD([p], lr=0.1, **options)
        model = nn.Linear(1, 1, bias=False).double()
        tracker = CurvatureTracker(
            (torch.ones(1, 1, **FLOAT), p.detach()[:, None]), model, nn.MSELoss()
        )
        row = tracker.step(None, optimizer)  # the curvature of that risk is 2
        assert row.largest_rate * row.stability == pytest.approx(0.1)
        curvature = factor * (2.0 + decay) / row.stability - decay
        for _ in range(600):
            optimizer.zero_grad()
            (0.5 * curvature * p.square().sum()).backward()
            optimizer.step()
        assert bool(p.abs() > 1.0) == grows
        assert row.momentum == options.get("momentum", 0.0)


@pytest.mark.slow
def test_a_weight_decay_that_the_risk_has_too_counts_once():
    model = net()
    rows = []
    for decay in (0.0, DECAY, 3 * DECAY):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=decay)
        rows.append(CurvatureTracker(risk(model)).step(model, optimizer))
    assert rows[1].stability == rows[0].stability
    extra = rows[2].stability - rows[0].stability
    assert extra == pytest.approx(2 * DECAY * 0.1 / 2)
    ascent = torch.optim.SGD(model.parameters(), lr=0.1, maximize=True)
    assert CurvatureTracker(risk(model)).step(model, ascent).stability is None


def test_optimizers_that_precondition_have_no_ratio():
    model = net()
    row = CurvatureTracker(risk(model)).step(model, torch.optim.Adam(model.parameters()))
    assert row.stability is None
    assert row.learning_rate is None
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    row = CurvatureTracker(risk(model)).step(model, torch.optim.SGD(groups, lr=0.3))
    assert row.learning_rate == 0.3


def test_later_measurements_start_from_the_eigenvectors_found_last():
    R, move = risk(), 0.01
    warm, cold = forever(every=1), 0
    params = dict(R.params)
    for _ in range(4):
        warm.step(params)
        cold += CurvatureTracker(R).step(params).products
        params = {name: p + move * torch.ones_like(p) for name, p in params.items()}
    assert sum(row.products for row in warm.history) < cold
    assert len({row.sharpness for row in warm.history}) == 4


def test_a_loss_that_is_not_finite_is_recorded():
    params = {name: p * math.nan for name, p in risk().params.items()}
    row = forever(trace=True, noise=True, per_layer=True).step(params, 0.1)
    assert math.isnan(row.loss)
    assert row.sharpness is None
    assert row.products == 0


# -- Without a trace -------------------------------------------------------------------------------


@pytest.mark.slow
def test_nothing_of_a_training_is_disturbed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Tanh(), nn.Linear(6, 3)
    ).double()
    model[1].eval()  # frozen statistics: a mode of its own
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, Y), batch_size=8, shuffle=True
    )
    CE(model(X), Y).backward()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    tracker = CurvatureTracker(loader, model, CE, trace=True, noise=True)
    row = tracker.step(model, 0.1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    model.eval()
    assert row.loss == pytest.approx(CE(model(X), Y).item())


def test_the_modes_come_back_after_an_error():
    model = net().train()
    tracker = CurvatureTracker(risk(model))
    with pytest.raises(HesseError):
        tracker.step({"0.weight": torch.ones(3)})
    assert all(module.training for module in model.modules())


# -- The budget ------------------------------------------------------------------------------------


class Clock:
    """Seconds as the test wants them; a measurement reads it twice."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def clocked(budget, cost, steps, every=1):
    """At which of so many steps of one second measurements of `cost` seconds are taken."""
    clock = Clock()
    tracker = CurvatureTracker(
        risk(), every=every, budget=budget, clock=clock, writer=lambda row: None
    )

    def at(params):
        clock.now += cost
        return {"loss": 1.0, "gradient_norm": 1.0}

    tracker._probe.at = at
    for _ in range(steps):
        tracker.step()
        clock.now += 1.0
    return [row.step for row in tracker.history], tracker


def test_measurements_keep_within_their_share_of_the_time():
    with pytest.warns(UserWarning, match="budget=0.1") as caught:
        steps, tracker = clocked(0.1, 2.0, 101)
    assert steps == [0, 40, 60, 80, 100]  # the second waits for the price of two
    assert len(caught) == 1
    assert sum(row.seconds for row in tracker.history[1:]) <= 0.1 * 101
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clocked(None, 2.0, 5)[0] == [0, 1, 2, 3, 4]
        assert clocked(0.1, 0.1, 30, every=10)[0] == [0, 10, 20]


def test_a_price_that_varies_stays_within_the_share():
    """After every measurement but the first, which waits for nothing."""
    prices, clock = itertools.cycle([5.0, 1.0, 4.0, 1.0, 1.0]), Clock()
    budget, trained, taken = TimeBudget(0.1, clock), 0.0, 0
    for _ in range(2000):
        if budget.allows():
            with budget.spending():
                clock.now += next(prices)
            taken += 1
            assert taken == 1 or budget.spent <= 0.1 * trained
        clock.now += 1.0
        trained += 1.0
    assert budget.spent > 0.095 * trained


# -- Where it goes ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_are_written_as_they_come(tmp_path):
    class Board:
        def __init__(self):
            self.calls = []

        def add_scalar(self, *call):
            self.calls.append(call)

    board, logged = Board(), []
    wandb = types.SimpleNamespace(log=lambda row, step: logged.append((step, row)))
    lines, table = tmp_path / "h.jsonl", tmp_path / "h.csv"
    first = forever(every=2, per_layer=True, file=lines, writer=board)
    second = forever(every=2, top=2, file=str(table), writer=wandb)
    for tracker in (first, second):
        for _ in range(3):
            tracker.step(learning_rate=0.1)
        tracker.step({name: p * math.nan for name, p in risk().params.items()})
        tracker.step({name: p * math.nan for name, p in risk().params.items()})
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4]
    assert rows[1] == first.history[1].to_dict()
    assert rows[2]["loss"] is None
    assert ("curvature/sharpness", first.history[0].sharpness, 0) in board.calls
    assert any(call[0] == "curvature/layers/2" for call in board.calls)
    assert [step for step, _ in logged] == [0, 2, 4]
    read = list(csv.DictReader(io.StringIO(table.read_text())))
    assert float(read[1]["eigenvalues/2"]) == second.history[1].eigenvalues[1]
    assert read[2]["sharpness"] == ""
    with pytest.raises(HesseError, match="other options"):
        forever(per_layer=True, file=table).step()
    forever(every=2, top=2, file=table).step()
    assert len(table.read_text().splitlines()) == 5


def test_the_history_is_a_table_and_a_picture():
    tracker = forever(every=1)
    assert "no measurements" in repr(tracker.history)
    for _ in range(12):
        tracker.step(learning_rate=0.5)
    history = tracker.history
    assert len(history) == 12
    assert history.to_dict()["step"] == list(range(12))
    read = list(csv.DictReader(io.StringIO(history.to_csv())))
    assert float(read[3]["sharpness"]) == history[3].sharpness
    assert repr(history).count("\n") == 9
    assert "4 more" in repr(history)
    assert "12 measurements" in repr(tracker)
    with pytest.raises(AttributeError):
        history.rows = ()
    pytest.importorskip("matplotlib").use("Agg")
    axes = history.plot()
    assert axes.get_xlabel() == "step"
    assert len(axes.lines) == 3
    limit = axes.lines[2].get_ydata()
    assert limit == pytest.approx([4.0] * 12)


@pytest.mark.slow
def test_a_tracker_goes_on_from_its_state(tmp_path):
    path = tmp_path / "state.pt"
    points = [{name: (1 + 0.1 * k) * p for name, p in risk().params.items()} for k in range(6)]
    with hesse.deterministic():
        whole = forever(every=1, noise=5)
        for point in points:
            whole.step(point, 0.1)
        first = forever(every=1, noise=5)
        for point in points[:3]:
            first.step(point, 0.1)
        torch.save(first.state_dict(), path)
        second = forever(every=1, noise=5)
        second.load_state_dict(torch.load(path, weights_only=True))
        for point in points[3:]:
            second.step(point, 0.1)
    columns = [tracker.history.to_dict() for tracker in (whole, second)]
    for each in columns:
        each.pop("seconds")
    assert columns[0] == columns[1]


@pytest.mark.slow
def test_gradient_descent_goes_to_the_edge_of_stability():
    """lambda_max rises to 2 / eta and stays there (Cohen et al. 2021)."""
    torch.manual_seed(0)
    x = torch.randn(60, 5, **FLOAT)
    model = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    R = Risk(model, nn.MSELoss(), (x, torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15)
    tracker = CurvatureTracker(R, every=50, budget=None)
    for _ in range(2001):
        tracker.step(None, optimizer)
        optimizer.zero_grad()
        R.loss(model(x), R.data.first.targets).backward()
        optimizer.step()
    ratios = [row.stability for row in tracker.history]
    assert ratios[0] < 0.9
    assert 0.95 < sum(ratios[20:]) / len(ratios[20:]) < 1.05


# -- What is refused -------------------------------------------------------------------------------

REFUSED = {
    "batches without a model": (lambda: CurvatureTracker(BATCHES), "batches with the model"),
    "a model without a loss": (lambda: CurvatureTracker(BATCHES, net()), "no loss"),
    "a risk and a model": (lambda: CurvatureTracker(risk(), net()), "a Risk alone"),
    "never": (lambda: forever(every=0), "every"),
    "no eigenvalue": (lambda: forever(top=0), "top"),
    "a budget of zero": (lambda: CurvatureTracker(risk(), budget=0.0), "share of the training"),
    "a trace that is no flag": (lambda: forever(trace=1), "True or False"),
    "noise of one example": (lambda: forever(noise=1.5), "noise"),
    "the noise of a single example": (
        lambda: CurvatureTracker((X[:1], Y[:1]), net(), CE, noise=True),
        "two examples",
    ),
    "layers by one name": (lambda: forever(per_layer="0"), "list of names"),
    "a layer that is not there": (lambda: forever(per_layer=["3"]), "name of a leaf"),
    "a file of another kind": (lambda: forever(file="history.txt"), "jsonl"),
    "a file in no folder": (lambda: forever(file="no/such/folder/h.csv"), "folder that exists"),
    "a writer that cannot write": (lambda: forever(writer=3), "SummaryWriter"),
    "a clock that is no function": (lambda: forever(clock=3.0), "clock"),
    "a generator that is a seed": (lambda: forever(generator=0), "generator"),
    "a negative rate": (lambda: forever().step(None, -0.1), "learning_rate >= 0"),
    "a momentum of one": (lambda: forever().step(None, 0.1, momentum=1.0), "beta < 1"),
    "another module": (lambda: forever().step(nn.Linear(2, 2)), "parameters of the risk"),
    "an optimizer as the parameters": (
        lambda: forever().step(torch.optim.SGD(net().parameters(), 0.1)),
        "params to be a tensor",
    ),
    "a state of something else": (lambda: forever().load_state_dict({}), "a state with"),
    "a plot of nothing": (lambda: forever().history.plot(), "at least one measurement"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_a_remedy(case):
    assert_refused(*REFUSED[case])
