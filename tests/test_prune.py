"""Pruning: against constrained minima of dense quadratics, and what it refuses."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

import hesse
from hesse import HesseError, Risk, Status
from hesse.apps import Repair, prune
from hesse.apps.pruning.elimination import eliminated
from hesse.apps.pruning.patterns import Pattern
from tests.pruning_problems import (
    BEST,
    EXACT,
    LINEAR,
    NEAR,
    NETWORK,
    RAGGED,
    TRAINED,
    H,
    W,
    X,
    Y,
    constrained_minimum,
)  # fmt: skip

FULL = Repair(rtol=1e-12, target="risk")


# -- The repair -----------------------------------------------------------------------------------


@pytest.mark.some_cases(14)
@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("pattern", ["entries", "2:4", "3:4", "rows", "blocks", "2x2"])
@pytest.mark.parametrize("score", ["magnitude", "obd", "obs", "exchange"])
def test_weights_are_the_constrained_minimum(score, pattern):
    start = {"weight": BEST["weight"] + 0.1 * torch.sin(torch.arange(24.0).double()).view(3, 8)}
    w, risk_before = start["weight"].reshape(-1), float(LINEAR(start))
    sparsity = None if ":" in pattern else 0.5
    result = prune(LINEAR, start, sparsity, score=score, pattern=pattern, damping=0.0, repair=FULL)
    keep = result.mask["weight"].reshape(-1)
    d, least = constrained_minimum(H, H @ (w - W), w, keep)
    torch.testing.assert_close(result.params["weight"].reshape(-1), w + d, **NEAR)
    assert (result.params["weight"].reshape(-1)[~keep] == 0.0).all()
    assert result.predicted_increase == pytest.approx(least, rel=1e-9)
    assert float(LINEAR(result.params)) - risk_before == pytest.approx(least, rel=1e-8)


def test_damping_keeps_weights_near():
    result = prune(LINEAR, BEST, 0.5, score="magnitude", damping=0.7, repair=EXACT)
    keep = result.mask["weight"].reshape(-1)
    damped = H + 0.7 * torch.eye(24).to(H)
    d, _ = constrained_minimum(damped, torch.zeros_like(W), W, keep)
    torch.testing.assert_close(result.params["weight"].reshape(-1), W + d, **NEAR)
    assert result.predicted_increase == pytest.approx(float(0.5 * d @ H @ d), rel=1e-9)


def test_without_repair_the_others_stay():
    result = prune(LINEAR, BEST, 0.5, repair=False, damping=0.0)
    keep = result.mask["weight"].reshape(-1)
    scores = H.diagonal() * W**2
    assert scores[~keep].max() <= scores[keep].min()
    torch.testing.assert_close(result.params["weight"].reshape(-1), torch.where(keep, W, 0.0))
    d = torch.where(keep, 0.0, -W)
    assert result.predicted_increase == pytest.approx(float(0.5 * d @ H @ d), rel=1e-9)


# -- Masks ----------------------------------------------------------------------------------------


def test_surgery_of_one_weight():
    result = prune(LINEAR, BEST, 1.01 / 24, score="obs", damping=0.0, repair=EXACT)
    inverse = torch.linalg.inv(H)
    cost = 0.5 * W**2 / inverse.diagonal()
    q = int(cost.argmin())
    assert (~result.mask["weight"].reshape(-1)).nonzero().tolist() == [[q]]
    assert result.predicted_increase == pytest.approx(float(cost[q]), rel=1e-8)
    expected = W - W[q] / inverse[q, q] * inverse[:, q]
    torch.testing.assert_close(result.params["weight"].reshape(-1), expected, **NEAR)


@pytest.mark.parametrize("pattern", ["rows", "2x2", "1x4"])
def test_surgery_of_one_group(pattern):
    """The group whose constrained minimum is least, for each of its weights."""
    groups = Pattern.of(hesse.Space.of(BEST), pattern, None)
    size = int(groups.sizes.max())
    masks = [groups.group != k for k in range(len(groups.sizes))]
    costs = [constrained_minimum(H, 0 * W, W, keep)[1] / int((~keep).sum()) for keep in masks]
    best = masks[costs.index(min(costs))]
    fits = (size + 0.01) / 24
    result = prune(LINEAR, BEST, fits, score="obs", pattern=pattern, damping=0.0, repair=EXACT)
    torch.testing.assert_close(result.mask["weight"].reshape(-1), best)


def test_elimination_is_the_inverse_of_the_rest():
    inverse, P = torch.linalg.inv(H), torch.tensor([3, 7, 20])
    keep = torch.ones(24, dtype=torch.bool)
    keep[P] = False
    w, rest = eliminated(W, inverse, P)
    torch.testing.assert_close(rest[keep][:, keep], torch.linalg.inv(H[keep][:, keep]), **NEAR)
    torch.testing.assert_close(w, W + constrained_minimum(H, 0 * W, W, keep)[0], **NEAR)


@pytest.mark.slow
def test_masks_beside_the_best_of_all():
    """Exchanges lower the model; surgery comes near the best of all masks of these problems."""
    total = dict.fromkeys(("best", "exchange", "obd", "obs"), 0.0)
    for k in range(8):
        y = torch.randn(17, 1, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
        risk = Risk(nn.Linear(8, 1, bias=False).double(), nn.MSELoss(), (X, y), weight_decay=0.01)
        w0 = hesse.minimize(risk, risk.params, rtol=0.0, atol=1e-12).x
        A = hesse.hessian_operator(risk, w0).to_dense()
        w = w0["weight"].reshape(-1)
        masks = [[i in kept for i in range(8)] for kept in itertools.combinations(range(8), 4)]
        found = {
            score: prune(risk, w0, 0.5, score=score, damping=0.0, repair=EXACT).predicted_increase
            for score in ("exchange", "obd", "obs")
        }
        best = min(constrained_minimum(A, 0 * w, w, torch.tensor(mask))[1] for mask in masks)
        assert best <= min(found.values()) * (1 + 1e-9)
        assert found["exchange"] <= found["obd"] * (1 + 1e-9)
        total = {name: total[name] + value for name, value in {**found, "best": best}.items()}
    assert total["exchange"] < 0.95 * total["obd"]
    assert total["obs"] - total["best"] < 0.1 * (total["obd"] - total["best"])


@pytest.mark.parametrize(("pattern", "kept", "of"), [("2:4", 2, 4), ("1:3", 1, 3)])
def test_kept_of_neighbours(pattern, kept, of):
    for score in ("magnitude", "obs", "exchange"):
        mask = prune(LINEAR, BEST, None, score=score, pattern=pattern, damping=0.1).mask["weight"]
        for group in mask.split(of, dim=1):
            assert (group.sum(1) <= kept).all()
    magnitude = prune(LINEAR, BEST, None, score="magnitude", pattern=pattern, damping=0.1)
    for values, group in zip(
        BEST["weight"].split(of, 1), magnitude.mask["weight"].split(of, 1), strict=True
    ):
        smallest = torch.where(group, values.abs(), math.inf).min(1).values
        assert (torch.where(group, 0.0, values.abs()).max(1).values <= smallest).all()


def test_only_what_is_named_is_pruned_and_counted():
    result = prune(NETWORK, TRAINED, 0.5, damping=1e-3)
    assert result.mask["0.bias"].all()
    assert result.mask["2.bias"].all()
    gone = sum(int((~result.mask[name]).sum()) for name in ("0.weight", "2.weight"))
    assert gone == 33
    assert result.sparsity == pytest.approx(0.5)
    one = prune(NETWORK, TRAINED, 0.5, damping=1e-3, where=["2.*"])
    assert one.mask["0.weight"].all()
    assert int((~one.mask["2.weight"]).sum()) + int((~one.mask["2.bias"]).sum()) == 10


# -- The search, steps, refit ---------------------------------------------------------------------


def test_damping_is_the_best_for_the_held_out_data():
    held_out = NETWORK.subset(range(10, 17))
    fitted = NETWORK.subset(range(10))
    result = prune(fitted, TRAINED, 0.6, held_out=held_out)
    losses = {}
    for factor in (0.1, 1.0, 10.0):
        one = prune(fitted, TRAINED, 0.6, damping=factor * result.damping, held_out=held_out)
        losses[factor] = float(held_out(one.params))
    assert losses[1.0] == pytest.approx(result.held_out_loss)
    assert losses[1.0] <= min(losses[0.1], losses[10.0])


def test_the_last_repair_uses_all_examples():
    result = prune(LINEAR, BEST, 0.5, score="magnitude", repair=EXACT)
    again = prune(LINEAR, BEST, 0.5, score="magnitude", repair=EXACT, damping=result.damping)
    torch.testing.assert_close(result.params["weight"], again.params["weight"], **NEAR)
    assert result.held_out_loss is not None
    assert again.held_out_loss is None


def test_all_steps_are_taken_again_with_all_examples():
    seen, options = [], {"repair": Repair(target=None)}
    result = prune(
        *(NETWORK, TRAINED, 0.6), steps=2, callback=lambda s: seen.append(s.step), **options
    )
    assert seen == [1, 2, 1, 2]
    again, dampings = TRAINED, [row[1] for row in result.history]
    for k, damping in enumerate(dampings):
        share = (1 - 0.4**0.5, 0.6)[k]
        again = prune(NETWORK, again, share, damping=damping, **options).params
    for name, values in again.items():
        torch.testing.assert_close(result.params[name], values, **NEAR)


def test_steps_rise_to_the_sparsity():
    seen = []

    def note(state):
        seen.append((state.step, state.products))

    result = prune(NETWORK, TRAINED, 0.8, steps=3, damping=1e-2, callback=note)
    shares = [row[0] for row in result.history]
    expected = [1 - 0.2 ** (t / 3) for t in (1, 2, 3)]
    assert shares == pytest.approx(expected, abs=1 / 66)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert result.products == seen[-1][1]
    assert result.predicted_increase == pytest.approx(sum(row[2] for row in result.history))


@pytest.mark.slow
def test_refit_minimises_the_risk_over_what_is_kept():
    repair = Repair(target="risk", refit=60, rtol=1e-6)
    result = prune(LINEAR, BEST, 0.5, damping=0.1, repair=repair, held_out=LINEAR)
    keep = result.mask["weight"].reshape(-1)
    _, least = constrained_minimum(H, 0 * W, W, keep)
    assert float(LINEAR(result.params)) - float(LINEAR(BEST)) == pytest.approx(least, rel=1e-4)
    plain = prune(NETWORK, TRAINED, 0.8, damping=0.01)
    trained = prune(NETWORK, TRAINED, 0.8, damping=0.01, repair="refit")
    assert float(NETWORK(trained.params)) < float(NETWORK(plain.params))


def test_examples_are_drawn_by_the_generator():
    repair = Repair(examples=9)

    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        options = {"damping": 0.1, "repair": repair, "generator": generator}
        return prune(LINEAR, BEST, 0.5, **options).params["weight"]

    torch.testing.assert_close(drawn(1), drawn(1), rtol=0.0, atol=0.0)
    assert not torch.equal(drawn(1), drawn(2))


# -- Use ------------------------------------------------------------------------------------------


def test_masks_serve_torch():
    result = prune(NETWORK, TRAINED, 0.7, damping=1e-2)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    model.load_state_dict(TRAINED)
    for name, mask in result.mask.items():
        layer, _, parameter = name.rpartition(".")
        torch_prune.custom_from_mask(model.get_submodule(layer), parameter, mask)
    with torch.no_grad():
        model[0].weight_orig.copy_(result.params["0.weight"] + ~result.mask["0.weight"])
        for name in ("0.bias", "2.weight", "2.bias"):
            layer, _, parameter = name.rpartition(".")
            getattr(model.get_submodule(layer), f"{parameter}_orig").copy_(result.params[name])
    plain = torch.func.functional_call(NETWORK.model, result.params, (X,))
    torch.testing.assert_close(model(X), plain)


@pytest.mark.parametrize(
    "curvature",
    ["fisher", "hessian", hesse.kfac_operator, hesse.ggn_operator(NETWORK, TRAINED)],
    ids=["fisher", "hessian", "function", "operator"],
)
def test_any_curvature(curvature):
    result = prune(NETWORK, TRAINED, 0.5, curvature=curvature, damping=0.3, repair=EXACT)
    A = curvature
    if callable(curvature):
        A = curvature(NETWORK, TRAINED)
    elif isinstance(curvature, str):
        A = getattr(hesse, f"{curvature}_operator")(NETWORK, TRAINED)
    space = hesse.Space.of(TRAINED)
    w, keep = space.flatten(TRAINED), torch.cat([m.reshape(-1) for m in result.mask.values()])
    dense = A.to_dense() + 0.3 * torch.eye(space.n).to(w)
    d, _ = constrained_minimum(dense, 0 * w, w, keep)
    torch.testing.assert_close(space.flatten(result.params), w + d, **NEAR)


def test_surgery_by_an_inverse_that_structure_gives(monkeypatch):
    monkeypatch.setattr("hesse.apps.pruning.elimination.DENSE", 10)
    options = {"score": "obs", "damping": 0.1, "curvature": hesse.kfac_operator}
    result = prune(NETWORK, TRAINED, 0.5, **options)
    K = hesse.kfac_operator(NETWORK, TRAINED).to_dense()
    score = (
        hesse.Space.of(TRAINED).flatten(TRAINED) ** 2
        / torch.linalg.inv(K + 0.1 * torch.eye(len(K)).to(K)).diagonal()
    )
    keep = torch.cat([m.reshape(-1) for m in result.mask.values()])
    weights = torch.cat([torch.full((m.numel(),), m.ndim > 1) for m in result.mask.values()])
    assert score[~keep].max() <= score[keep & weights].min()
    with pytest.raises(HesseError, match="score='exchange'"):
        prune(NETWORK, TRAINED, 0.5, score="obs", damping=0.1)


def test_nothing_of_the_caller_changes():
    before = {k: v.clone() for k, v in TRAINED.items()}
    inside = {k: v.clone() for k, v in NETWORK.model.state_dict().items()}
    result = prune(NETWORK, TRAINED, 0.5, damping=1e-2, steps=2)
    for values in result.params.values():
        values.zero_()
    assert all(torch.equal(v, before[k]) for k, v in TRAINED.items())
    assert all(torch.equal(v, inside[k]) for k, v in NETWORK.model.state_dict().items())


def test_single_precision():
    model = nn.Linear(8, 3, bias=False)
    data = [(x.float(), y.float()) for x, y in RAGGED]
    risk = Risk(model, nn.MSELoss(), data, weight_decay=0.1)
    start = {"weight": BEST["weight"].float()}
    result = prune(risk, start, 0.5, score="obs", damping=0.0, repair=Repair(rtol=1e-6))
    exact = prune(LINEAR, BEST, 0.5, score="obs", damping=0.0, repair=EXACT)
    assert result.params["weight"].dtype is torch.float32
    torch.testing.assert_close(result.params["weight"].double(), exact.params["weight"],
                               rtol=1e-3, atol=1e-4)  # fmt: skip


def test_killed_and_continued(tmp_path):
    options = {"steps": 3, "damping": 0.05, "repair": Repair(rtol=1e-10, examples=9)}
    whole = prune(LINEAR, BEST, 0.7, **options)
    path = tmp_path / "prune"
    stopped = prune(
        *(LINEAR, BEST, 0.7), **options, checkpoint=path, callback=lambda s: s.step == 2
    )
    assert stopped.status is Status.STOPPED
    assert stopped.sparsity < whole.sparsity
    rest = prune(LINEAR, BEST, 0.7, **options, checkpoint=path)
    assert rest.status is Status.CONVERGED
    torch.testing.assert_close(rest.params["weight"], whole.params["weight"], rtol=0.0, atol=0.0)
    with pytest.raises(HesseError, match="checkpoint"):
        prune(LINEAR, BEST, 0.6, **options, checkpoint=path)


INDEFINITE = hesse.dense_operator(H - H.diagonal().mean() * torch.eye(24).to(H))
NORMED = Risk(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3)).double(), nn.MSELoss(), RAGGED)
SMALL = Risk(nn.Linear(8, 3, bias=False).double(), nn.MSELoss(), (X[:9], Y[:9]))


REFUSED = [
    ((lambda w: w, BEST, 0.5), {}, "hesse.Risk on the calibration data"),
    ((LINEAR, BEST, 1.0), {}, "between 0 and 1"),
    ((LINEAR, BEST), {}, "Give 0.9"),
    ((LINEAR, BEST, 0.9), {"pattern": "2:4"}, "sparsity=None"),
    ((LINEAR, BEST, 0.5), {"pattern": "4:2"}, "such as '2:4'"),
    ((LINEAR, BEST, 0.5), {"score": "obss"}, "Did you mean 'obs'"),
    ((LINEAR, BEST, 0.5), {"curvature": "gn"}, "Did you mean 'ggn'"),
    ((LINEAR, BEST, 0.5), {"where": "biass"}, "domain.names"),
    ((LINEAR, BEST, 0.5), {"damping": -1.0}, "held-out"),
    ((LINEAR, BEST, 0.5), {"repair": "retrain"}, "'refit'"),
    ((LINEAR, BEST, 0.5), {"curvature": "layers", "repair": Repair(refit=1)}, "target='risk'"),
    ((LINEAR, BEST, 0.5), {"steps": 0}, "steps >= 1"),
    ((SMALL, None, 0.5), {}, "held_out data"),
    ((LINEAR, BEST, 0.5), {"curvature": INDEFINITE, "damping": 0.0}, "positive definite"),
    ((LINEAR, BEST, 0.5), {"curvature": INDEFINITE, "steps": 2}, "steps=1"),
    ((LINEAR, BEST, 0.5), {"curvature": INDEFINITE.restrict(range(4))}, "24 parameters"),
    ((LINEAR, {"weight": BEST["weight"] / 0.0}, 0.5), {}, "Train the network"),
    (
        (LINEAR, BEST, 0.5),
        {"curvature": "layers", "score": "obs", "pattern": "rows", "damping": 0.1},
        "score='exchange'",
    ),
    (
        (NORMED, None, 0.5),
        {"curvature": "layers", "score": "obs", "where": "*", "damping": 0.1},
        "Leave it out of `where`",
    ),
]


@pytest.mark.parametrize(("arguments", "options", "message"), REFUSED)
def test_refusals(arguments, options, message):
    with pytest.raises(HesseError, match=message) as raised:
        prune(*arguments, **options)
    assert "hesse.apps.prune(" in str(raised.value)


def test_no_weights_to_prune():
    risk = Risk(lambda p, x: x @ p, nn.MSELoss(), (X, Y[:, 0]), params=torch.ones(8).double())
    with pytest.raises(HesseError, match="where="):
        prune(risk, None, 0.5)
