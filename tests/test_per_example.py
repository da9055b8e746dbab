"""The losses of single examples, and products with their Jacobian."""

import pytest
import torch
from torch import nn

import hesse
from hesse import HesseError, Risk
from hesse.curvature import jacobian_operator


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def features(n=11):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g, dtype=torch.float64)


NET = net()
CLASSES = torch.tensor([0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


class OfPlaces(nn.Module):
    """A loss of tokens: every example has three places, and some are ignored."""

    def __init__(self):
        super().__init__()
        self.reduction = "mean"

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def tokens():
    """Sequences of three places with targets of -100 here and there, all of example 4."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(11, 3, 4, generator=g, dtype=torch.float64)
    y = torch.randint(3, (11, 3), generator=g)
    y[0, 1:], y[4], y[7, 0] = -100, -100, -100
    return x, y


def places(inputs, targets):
    return float((targets != -100).sum())


def batched(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


CASES = {
    "mean": (nn.CrossEntropyLoss(), features(), CLASSES, {}),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), features(), CLASSES, {}),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), features(), CLASSES, {}),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), features(), CLASSES, {}),
    "squares": (nn.MSELoss(), features(), features()[:, :3] ** 2, {}),
    "tokens": (OfPlaces(), *tokens(), {"weight": places}),
}


def definition(name, params):
    """N times what each example adds, by losses that are not reduced: shape (N,)."""
    _, x, y, _ = CASES[name]
    z = torch.func.functional_call(NET, params, (x,))
    N, ce = len(x), nn.functional.cross_entropy
    if name == "mean":
        return ce(z, y, reduction="none")
    if name == "sum":
        return N * ce(z, y, reduction="none")
    if name == "class weights":
        return N * ce(z, y, WEIGHTS, reduction="none") / WEIGHTS[y].sum()
    if name == "smoothed":
        return ce(z, y, label_smoothing=0.1, reduction="none")
    if name == "squares":
        return ((z - y) ** 2).mean(1)
    rows = ce(z.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    return N * rows.sum(1) / (y != -100).sum()


@pytest.mark.parametrize("sizes", [11, 4])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_derivatives_are_those_of_the_definition(name, sizes):
    loss, x, y, options = CASES[name]
    risk = Risk(net(), loss, batched(x, y, sizes), weight_decay=0.3, **options)
    params, each = risk.params, risk.per_example
    space = hesse.Space.of(params)
    flat = space.flatten(params)
    expected = definition(name, params)
    torch.testing.assert_close(each.losses(params), expected, rtol=1e-12, atol=1e-14)
    data_part = risk(params) - 0.15 * flat @ flat
    torch.testing.assert_close(each.losses(params).mean(), data_part, rtol=1e-12, atol=0.0)
    J = torch.func.jacrev(lambda v: definition(name, space.unflatten(v)))(flat)
    g = torch.Generator().manual_seed(3)
    S = torch.randn(space.n, 2, generator=g, dtype=torch.float64)
    U = torch.randn(11, 2, generator=g, dtype=torch.float64)
    near = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(each.jvp(params, S), J @ S, **near)
    torch.testing.assert_close(each.jvp(params, S[:, 0]), J @ S[:, 0], **near)
    torch.testing.assert_close(each.jvp(params, space.unflatten(S[:, 1])), J @ S[:, 1], **near)
    torch.testing.assert_close(each.vjp(params, U), J.T @ U, **near)
    torch.testing.assert_close(each.vjp(params, U[:, 0]), J.T @ U[:, 0], **near)
    chunks = list(each.gradients(params, most=4))
    assert [len(chunk) for chunk in chunks] == [4, 4, 3]
    torch.testing.assert_close(torch.cat(chunks), J, **near)


@pytest.mark.parametrize("name", ["class weights", "tokens"])
def test_the_jacobian_operator_takes_the_losses(name):
    loss, x, y, options = CASES[name]
    risk = Risk(net(), loss, batched(x, y, 4), **options)
    space = hesse.Space.of(risk.params)
    J = jacobian_operator(risk.per_example, risk.params)
    expected = torch.func.jacrev(lambda v: definition(name, space.unflatten(v)))(
        space.flatten(risk.params)
    )
    v = torch.linspace(-1.0, 1.0, space.n, dtype=torch.float64)
    for _ in range(4):  # the first product is another program than the later ones
        torch.testing.assert_close(J @ v, expected @ v, rtol=1e-11, atol=1e-12)
    u = torch.linspace(-1.0, 2.0, 11, dtype=torch.float64)
    torch.testing.assert_close(space.flatten(J.T @ u), expected.T @ u, rtol=1e-11, atol=1e-12)


def test_the_weights_of_a_weighted_risk_are_in_the_losses():
    w = torch.linspace(0.0, 2.0, 11, dtype=torch.float64)
    risk = Risk(net(), nn.CrossEntropyLoss(), batched(features(), CLASSES, 4))
    got = risk.weighted(w).per_example.losses(risk.params)
    torch.testing.assert_close(got, w * definition("mean", risk.params), rtol=1e-12, atol=1e-14)


def test_single_precision_and_frozen_parameters():
    x, y = features().float(), CLASSES
    risk = Risk(net().float(), nn.CrossEntropyLoss(), batched(x, y, 4))
    params = risk.params
    params["0.weight"] = nn.Parameter(params["0.weight"], requires_grad=False)
    rows = torch.cat(list(risk.per_example.gradients(params)))
    assert rows.dtype is torch.float32
    space = hesse.Space.of(params)
    place = space.subspace("0.weight")[1]
    exact = {name: leaf.detach().double() for name, leaf in params.items()}
    doubles = hesse.Space.of(exact)
    J = torch.func.jacrev(lambda v: definition("mean", doubles.unflatten(v)))(
        doubles.flatten(exact)
    )
    J[:, place] = 0.0
    torch.testing.assert_close(rows.double(), J, rtol=1e-5, atol=1e-6)


def test_it_prints_its_size_and_says_what_does_not_fit():
    risk = Risk(net(), nn.CrossEntropyLoss(), batched(features(), CLASSES, 4))
    each = risk.per_example
    assert len(each) == 11
    assert repr(each).startswith("PerExample(11 examples of Risk(Sequential")
    with pytest.raises(HesseError, match="a weight for each example"):
        each.vjp(risk.params, torch.ones(10))
    with pytest.raises(HesseError, match="directions"):
        each.jvp(risk.params, torch.ones(3, 2, dtype=torch.float64))
    coupled = Risk(net(), lambda z, y: z.logsumexp(1).max(), (features(), CLASSES))
    with pytest.raises(HesseError, match="a mean or a sum by functions of torch"):
        coupled.per_example.losses(coupled.params)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [11, 4])
def test_examples_of_any_other_loss_are_taken_one_by_one(sizes, reduction):
    def loss(z, y):
        picked = z.gather(1, y[:, None])[:, 0]
        return getattr(z.logsumexp(1) - picked, reduction)()

    batches = batched(features(), CLASSES, sizes)
    risk = Risk(net(), loss, batches, weight_decay=0.3, reduction=reduction)
    params, each, space = risk.params, risk.per_example, hesse.Space.of(risk.params)
    with pytest.warns(hesse.errors.FallbackWarning, match="one at a time"):
        losses = each.losses(params)
    torch.testing.assert_close(losses, definition(reduction, params), rtol=1e-12, atol=1e-14)
    v = torch.linspace(-1.0, 1.0, space.n, dtype=torch.float64)
    f = lambda w: definition(reduction, space.unflatten(w))  # noqa: E731
    J = torch.func.jacrev(f)(space.flatten(params))
    near = {"rtol": 1e-11, "atol": 1e-12}
    torch.testing.assert_close(each.jvp(params, v), J @ v, **near)
    torch.testing.assert_close(torch.cat(list(each.gradients(params))), J, **near)
    torch.testing.assert_close(jacobian_operator(each, params) @ v, J @ v, **near)


def test_places_that_a_loss_of_ones_own_ignores_count_nothing():
    x, y = tokens()

    def loss(z, y):
        seen = y != -100
        chosen = z.log_softmax(-1).gather(-1, y.clamp(min=0)[..., None])[..., 0]
        return -(chosen * seen).sum() / seen.sum()

    risk = Risk(net(), loss, batched(x, y, 11), weight=places)
    with pytest.warns(hesse.errors.FallbackWarning):
        got = risk.per_example.losses(risk.params)
    torch.testing.assert_close(got, definition("tokens", risk.params), rtol=1e-12, atol=1e-14)


def test_params_that_are_not_finite_are_named():
    risk = Risk(net(), nn.CrossEntropyLoss(), (features(), CLASSES))
    params = {**risk.params, "2.bias": torch.full((3,), torch.nan).double()}
    each, n = risk.per_example, sum(p.numel() for p in params.values())
    for call in (
        lambda: each.losses(params),
        lambda: each.jvp(params, torch.ones(n).double()),
        lambda: each.vjp(params, torch.ones(11).double()),
        lambda: next(each.gradients(params)),
    ):
        with pytest.raises(hesse.errors.NonFiniteError, match=r"NaN or Inf in '2\.bias'"):
            call()


def test_it_works_under_no_grad_and_leaves_the_model_alone():
    model = net()
    risk = Risk(model, nn.CrossEntropyLoss(), (features(), CLASSES))
    with torch.no_grad():
        got = risk.per_example.jvp(risk.params, risk.params)
    torch.testing.assert_close(got, risk.per_example.jvp(risk.params, risk.params))
    assert all(p.grad is None for p in model.parameters())
