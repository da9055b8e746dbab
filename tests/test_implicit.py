# SPDX-License-Identifier: Apache-2.0
"""Implicit derivatives against closed forms, dense definitions and finite differences."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap
from torch.nn import functional as F

import hesse
from hesse.apps import ImplicitReport, argmin, fixed_point, hypergradient, root
from hesse.errors import (
    ArgumentError,
    DtypeError,
    FunctionError,
    HesseError,
    NonFiniteError,
    OperatorError,
    Status,
    StructureError,
)

DOUBLE = torch.float64
N = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=seeded(seed))


def definite(seed=0):
    M = random(N, N, seed=seed)
    return M @ M.T + torch.eye(N, dtype=DOUBLE)


A, B = definite(), random(N, N, seed=1)


def quadratic(x, l):
    """Its minimiser is (A + diag(e^l))^-1 B l."""
    return x @ A @ x / 2 + (l.exp() * x * x).sum() / 2 - x @ (B @ l)


def quadratic_minimiser(l):
    return torch.linalg.solve(A + torch.diag(l.exp()), B @ l)


W = 0.9 * random(N, N, seed=2) / math.sqrt(N)


def layer(x, l):
    """A deep equilibrium layer, whose Jacobian is not symmetric."""
    return torch.tanh(l["W"] @ x + l["b"])


def layer_by_iteration(l):
    x = torch.zeros(N, dtype=DOUBLE)
    for _ in range(400):
        x = layer(x, l)
    return x


LAYER = {"W": W, "b": random(N, seed=3)}
FUNCTIONS = {
    "minimum": (
        lambda **options: argmin(quadratic, torch.zeros(N, dtype=DOUBLE), **options),
        quadratic_minimiser,
    ),
    "root": (
        lambda **options: root(grad(quadratic), torch.zeros(N, dtype=DOUBLE), **options),
        quadratic_minimiser,
    ),
    "fixed point": (
        lambda **options: fixed_point(
            lambda x, l: layer(x, {"W": W, "b": l}), torch.zeros(N, dtype=DOUBLE), **options
        ),
        lambda l: layer_by_iteration({"W": W, "b": l}),
    ),
}
L0 = random(N, seed=4) / 2
OPTIONS = {"rtol": 1e-12, "warm_start": False}


def close(a, b, tolerance=1e-8):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def weigh(x):
    return (x**3).sum() + x[0] * x[1]


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_the_first_derivative_is_that_of_the_solution(kind):
    make, explicit = FUNCTIONS[kind]
    x, l = make(**OPTIONS), L0.clone().requires_grad_()
    close(x(l), explicit(L0))
    weigh(x(l)).backward()
    close(l.grad, grad(lambda l: weigh(explicit(l)))(L0))
    assert x.report.residual < 1e-8
    assert x.report.adjoint_status is Status.CONVERGED
    assert x.report.products >= x.report.adjoint_products > 0


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_derivatives_of_the_second_and_third_order(kind):
    make, explicit = FUNCTIONS[kind]
    x = make(**OPTIONS)

    def slope(function):
        return lambda l: (grad(lambda l: weigh(function(l)))(l) ** 2).sum()

    def bend(function):
        return lambda l: (grad(slope(function))(l) ** 2).sum()

    for derive in (slope, bend):
        right = grad(derive(explicit))(L0)
        close(grad(derive(x))(L0), right, 1e-7)
        l = L0.clone().requires_grad_()
        (by_graph,) = torch.autograd.grad(derive(x)(l), l)
        close(by_graph, right, 1e-7)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_gradients_recorded_by_autograd_can_be_differentiated_again(kind):
    make, explicit = FUNCTIONS[kind]
    results = []
    for function in (make(**OPTIONS), explicit):
        l = L0.clone().requires_grad_()
        (g,) = torch.autograd.grad(weigh(function(l)), l, create_graph=True)
        assert g.requires_grad
        (h,) = torch.autograd.grad((g**2).sum(), l)
        results.append((g.detach(), h))
    close(results[0][0], results[1][0])
    close(results[0][1], results[1][1], 1e-7)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_batches_and_jacobians(kind):
    make, explicit = FUNCTIONS[kind]
    x, many = make(**OPTIONS), torch.stack([L0, -L0, L0 / 2])
    close(vmap(x)(many), torch.stack([explicit(l) for l in many]))
    close(vmap(grad(lambda l: weigh(x(l))))(many), vmap(grad(lambda l: weigh(explicit(l))))(many))
    close(grad(lambda m: vmap(x)(m).pow(2).sum())(many),
          grad(lambda m: vmap(explicit)(m).pow(2).sum())(many))  # fmt: skip
    right = jacrev(explicit)(L0)
    close(jacrev(x)(L0), right)
    close(jacfwd(x)(L0), right)
    close(vmap(jacrev(x))(many), vmap(jacrev(explicit))(many))
    close(jacrev(jacrev(x))(L0), jacrev(jacrev(explicit))(L0), 1e-7)
    close(jacfwd(jacrev(x))(L0), jacrev(jacrev(explicit))(L0), 1e-7)


def test_a_jacobian_takes_one_block_of_adjoints():
    x = argmin(quadratic, torch.zeros(N, dtype=DOUBLE), **OPTIONS)
    jacrev(x)(L0)
    together = x.report.products
    for row in torch.eye(N, dtype=DOUBLE):
        l = L0.clone().requires_grad_()
        x(l).backward(row)
    apart = x.report.products - together
    assert together < apart


def test_a_scalar_parameter_of_a_scalar_unknown():
    x = argmin(lambda x, a: (x - a) ** 2 / 2, torch.tensor(0.0))
    a = torch.tensor(2.0, requires_grad=True)
    x(a).backward()
    assert x(a).shape == ()
    assert float(a.grad) == 1.0
    assert float(vmap(grad(x))(torch.tensor([1.0, 2.0])).sum()) == 2.0


def test_trees_of_unknowns_and_of_parameters():
    x0 = {"u": torch.zeros(2, 2, dtype=DOUBLE), "v": [torch.zeros((), dtype=DOUBLE)]}
    l = {"scale": torch.tensor(0.3, dtype=DOUBLE), "target": (random(2, 2), random(1))}

    def f(x, l):
        a, b = l["target"]
        u, v = x["u"], x["v"][0]
        return ((u - a) ** 2).sum() + ((v - b[0]) ** 2) + l["scale"].exp() * (u.sum() + v) ** 2

    def explicit(l):
        a, b = l["target"]
        flat = torch.cat([a.reshape(-1), b])
        eye = torch.eye(5, dtype=DOUBLE)
        return torch.linalg.solve(eye + l["scale"].exp() * torch.ones_like(eye), flat)

    solved = argmin(f, x0, **OPTIONS)

    def joined(l):
        x = solved(l)
        assert x["u"].shape == (2, 2)
        return torch.cat([x["u"].reshape(-1), x["v"][0].reshape(1)])

    close(joined(l), explicit(l))
    got = grad(lambda l: (joined(l) ** 3).sum())(l)
    right = grad(lambda l: (explicit(l) ** 3).sum())(l)
    close(got["scale"], right["scale"])
    close(got["target"][0], right["target"][0])
    close(got["target"][1], right["target"][1])


def test_parameters_and_unknowns_of_different_dtypes():
    x = argmin(lambda x, l: ((x - l.float()) ** 2).sum(), torch.zeros(2))
    l = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    x(l).sum().backward()
    assert l.grad.dtype == DOUBLE
    close(l.grad, torch.ones(2, dtype=DOUBLE), 1e-5)


def test_a_point_that_does_not_depend_on_a_parameter_has_derivative_zero():
    x = argmin(lambda x, l: ((x - l["a"]) ** 2).sum() + l["b"].sum(), torch.zeros(2))
    l = {"a": torch.ones(2, requires_grad=True), "b": torch.ones(3, requires_grad=True)}
    x(l).sum().backward()
    assert not l["b"].grad.any()


def test_the_start_has_no_gradient_and_is_not_changed():
    x0 = torch.full((N,), 0.5, dtype=DOUBLE, requires_grad=True)
    x = argmin(quadratic, x0)
    assert not x(L0).requires_grad
    assert bool((x0 == 0.5).all())


# -- A problem of learning -------------------------------------------------------------------------


def task(seed=0, num=60):
    """Softmax regression with a log weight decay for each parameter; ragged batches."""
    g = seeded(seed)
    centres = 1.5 * torch.randn(3, 5, generator=g, dtype=DOUBLE)
    y = torch.randint(0, 3, (2 * num,), generator=g)
    X = centres[y] + torch.randn(2 * num, 5, generator=g, dtype=DOUBLE)
    return (X[:num], y[:num]), (X[num:], y[num:])


MODEL = nn.Linear(5, 3).double()
TRAIN, VALID = task()
BATCHES = [(TRAIN[0][:25], TRAIN[1][:25]), (TRAIN[0][25:], TRAIN[1][25:])]
RISK = hesse.Risk(MODEL, nn.CrossEntropyLoss(), BATCHES)
START = {name: torch.zeros_like(p) for name, p in RISK.params.items()}


def penalised(params, logs):
    decay = sum((logs[name].exp() * p**2).sum() for name, p in params.items()) / 2
    return RISK(params) + decay


def validation(params, _=None):
    return F.cross_entropy(functional_call(MODEL, params, (VALID[0],)), VALID[1])


LOGS = {name: torch.full_like(p, -4.0) for name, p in START.items()}


def minimised(logs, atol=1e-12):
    return hesse.minimize(lambda p: penalised(p, logs), START, rtol=0.0, atol=atol).x


def test_a_weight_decay_for_each_parameter_equals_finite_differences():
    exact = hypergradient(validation, penalised, minimised(LOGS), LOGS, rtol=1e-10)
    h, i = 1e-4, int(exact.gradient["weight"].abs().argmax())

    def at(shift):
        logs = {name: l.clone() for name, l in LOGS.items()}
        logs["weight"].view(-1)[i] += shift
        return float(validation(minimised(logs)))

    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    got = float(exact.gradient["weight"].view(-1)[i])
    assert abs(got - difference) <= 1e-7 * abs(difference)
    assert exact.error < 1e-8
    x = argmin(penalised, START, rtol=1e-10)
    logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
    validation(x(logs)).backward()
    close(logs["weight"].grad, exact.gradient["weight"], 1e-7)
    close(logs["bias"].grad, exact.gradient["bias"], 1e-7)


@pytest.mark.parametrize("atol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-3])
def test_the_estimated_error_is_of_the_size_of_the_error(atol, rtol):
    exact = hypergradient(validation, penalised, minimised(LOGS), LOGS, rtol=1e-11)
    x = minimised(LOGS, atol)
    rough = hypergradient(validation, penalised, x, LOGS, rtol=rtol)
    space = hesse.Space.of(LOGS)
    error = space.norm(space.flatten(rough.gradient) - space.flatten(exact.gradient))
    assert error / 2 < rough.error < 2 * error
    distance = space.norm(space.flatten(x) - space.flatten(minimised(LOGS)))
    assert distance / 2 < rough.x_error < 2 * distance
    assert rough.residual <= atol


def test_the_function_estimates_its_error_if_asked():
    right = argmin(penalised, START, rtol=1e-11)
    rough = argmin(
        *(penalised, START),
        solve=lambda x0, logs: minimised(logs, 1e-3),
        rtol=1e-2,
        estimate_error=True,
    )
    space, grads = hesse.Space.of(LOGS), []
    direction = {name: random(*p.shape, seed=7) for name, p in START.items()}
    for x in (right, rough):
        logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
        found = x(logs)
        sum((found[name] * direction[name]).sum() for name in found).backward()
        grads.append(space.flatten({name: l.grad for name, l in logs.items()}))
    error = space.norm(grads[1] - grads[0])
    assert error / 2 < rough.report.gradient_error < 2 * error
    assert right.report.gradient_error is None
    assert "gradient_error" in repr(rough.report)
    assert len(repr(rough.report).splitlines()) < 24


def test_warm_starts_save_products():
    products = []
    for warm in (False, True):
        x = argmin(penalised, START, rtol=1e-4, warm_start=warm)
        logs = {name: l.clone().requires_grad_() for name, l in LOGS.items()}
        for _ in range(6):
            grads = torch.autograd.grad(validation(x(logs)), logs.values())
            logs = {
                name: (l - 0.5 * g).detach().requires_grad_()
                for (name, l), g in zip(logs.items(), grads, strict=True)
            }
        products.append(x.report.products)
    assert products[1] < 0.9 * products[0]


def test_hypergradients_start_from_the_last_adjoint():
    first = hypergradient(validation, penalised, minimised(LOGS), LOGS, estimate_error=False)
    again = hypergradient(
        *(validation, penalised, minimised(LOGS), LOGS),
        adjoint=first.adjoint,
        estimate_error=False,
    )
    assert again.products <= 2 < first.products
    assert again.error is None


def test_the_explicit_part_of_the_outer_gradient_counts():
    l = torch.tensor([1.0, -2.0], dtype=DOUBLE)
    inner = lambda x, l: ((x - l**2) ** 2).sum()  # noqa: E731
    got = hypergradient(lambda x, l: (x * l).sum() + l[0], inner, l**2, l)
    close(got.gradient, 3 * l**2 + torch.tensor([1.0, 0.0], dtype=DOUBLE))
    close(got.value, (l**3).sum() + 1.0)
    only_explicit = hypergradient(lambda x, l: (l**2).sum(), inner, l**2, l)
    close(only_explicit.gradient, 2 * l)


def test_the_weight_of_an_example_has_minus_its_influence():
    """Data hyper-cleaning: dL/dw_i = -s'g_i."""
    X, y = TRAIN

    def weighted(params, w):
        losses = F.cross_entropy(functional_call(MODEL, params, (X,)), y, reduction="none")
        return (w * losses).mean() + 0.01 * sum((p**2).sum() for p in params.values())

    w = torch.ones(len(y), dtype=DOUBLE)
    x = hesse.minimize(lambda p: weighted(p, w), START, rtol=0.0, atol=1e-10).x
    result = hypergradient(validation, weighted, x, w, rtol=1e-11)
    space = hesse.Space.of(x)
    H = hesse.hessian_operator(lambda p: weighted(p, w), x).to_dense()
    g = space.flatten(grad(validation)(x))
    s = space.unflatten(torch.linalg.solve(H, g))
    slopes = jacrev(
        lambda p: F.cross_entropy(functional_call(MODEL, p, (X,)), y, reduction="none") / len(y)
    )(x)
    right = -sum((slopes[name].flatten(1) @ s[name].flatten()) for name in x)
    close(result.gradient, right)


def test_corrupted_examples_lose_their_weight():
    X, y = TRAIN
    wrong = torch.arange(0, len(y), 3)
    dirty = y.clone()
    dirty[wrong] = (dirty[wrong] + 1) % 3

    def weighted(params, w):
        losses = F.cross_entropy(functional_call(MODEL, params, (X,)), dirty, reduction="none")
        return (w.sigmoid() * losses).mean() + 0.01 * sum((p**2).sum() for p in params.values())

    x, w = argmin(weighted, START), torch.zeros(len(y), dtype=DOUBLE, requires_grad=True)
    optimizer = torch.optim.Adam([w], lr=0.2)
    for _ in range(30):
        optimizer.zero_grad()
        validation(x(w)).backward()
        optimizer.step()
    is_wrong = torch.zeros(len(y)).bool()
    is_wrong[wrong] = True
    weights = w.detach().sigmoid()
    assert weights[is_wrong].mean() < 0.3 < 0.5 < weights[~is_wrong].mean()


def test_the_gradient_of_imaml_equals_finite_differences():
    net = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    points = 5 * random(2, 8, 1)
    targets = torch.sin(points + 0.3)

    def mse(params, i):
        return ((functional_call(net, params, (points[i],)) - targets[i]) ** 2).mean()

    def inner(params, theta):
        away = sum(((p - theta[name]) ** 2).sum() for name, p in params.items())
        return mse(params, 0) + 0.25 * away

    def tight(x0, theta):
        return hesse.minimize(lambda p: inner(p, theta), x0, rtol=0.0, atol=1e-11).x

    adapt = argmin(inner, theta, solve=tight, rtol=1e-10)
    meta = {name: p.clone().requires_grad_() for name, p in theta.items()}
    mse(adapt(meta), 1).backward()
    h, i = 1e-4, int(meta["0.weight"].grad.abs().argmax())

    def at(shift):
        moved = {name: p.clone() for name, p in theta.items()}
        moved["0.weight"].view(-1)[i] += shift
        return float(mse(tight(theta, moved), 1))

    difference = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    got = float(meta["0.weight"].grad.view(-1)[i])
    assert abs(got - difference) <= 1e-7 * abs(difference)


def test_a_truncated_adjoint_is_that_of_few_steps_of_conjugate_gradients():
    x = argmin(quadratic, torch.zeros(N, dtype=DOUBLE), max_iterations=2, method="cg")
    l = L0.clone().requires_grad_()
    x(l).sum().backward()
    assert x.report.adjoint_status is Status.MAX_ITERATIONS
    assert x.report.adjoint_products == 3


# -- What is refused -------------------------------------------------------------------------------


def saddle(x, l):
    return (x[0] - l[0]) ** 2 - (x[1] - l[1]) ** 2 + x[1] ** 4


PAIR = torch.zeros(2, dtype=DOUBLE)


def test_a_saddle_point_is_not_called_a_minimum():
    l = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    stuck = argmin(saddle, PAIR, solve=lambda x0, l: torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(OperatorError, match=r"curvature -2.*saddle point"):
        stuck(l)
    with pytest.raises(OperatorError, match="saddle point"):
        hypergradient(lambda x, l: x.sum(), saddle, PAIR, l.detach())
    free = root(grad(saddle), PAIR, solve=lambda x0, l: torch.zeros(2, dtype=DOUBLE))
    free(l).sum().backward()
    close(l.grad, torch.ones(2, dtype=DOUBLE))


def test_the_librarys_own_search_leaves_the_saddle_point():
    x = argmin(saddle, PAIR)
    assert abs(float(x(PAIR)[1].abs()) - 0.5**0.5) < 1e-6
    assert x.report.min_curvature > 0.0


def test_a_minimum_that_is_not_isolated_has_no_derivative():
    x = argmin(lambda x, l: (x.sum() - l) ** 2, PAIR)
    l = torch.tensor(1.0, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(OperatorError, match="regular Jacobian"):
        x(l)[0].backward()
    y = x(l)
    y.sum().backward()  # which is the same for all minimisers
    close(l.grad, torch.ones((), dtype=DOUBLE))


def test_other_tensors_that_want_gradients_are_reported():
    weight = torch.ones(2, requires_grad=True)
    x = argmin(lambda x, l: ((x - weight * l) ** 2).sum(), torch.zeros(2))
    with pytest.warns(UserWarning, match="beside x and l") as caught:
        x(torch.ones(2))
    assert caught[0].filename == __file__
    x(torch.ones(2))


def test_a_search_that_stops_early_warns_and_a_hopeless_one_is_refused():
    with pytest.raises(OperatorError, match="UNBOUNDED"):
        argmin(lambda x, l: (x * l).sum() - (x**4).sum(), PAIR + 0.1)(PAIR + 1.0)
    with pytest.raises(OperatorError, match="solution x of the inner problem"):
        root(lambda x, l: x**2 + 1.0 + 0 * l, PAIR + 0.3)(PAIR)


REFUSED = {
    "f is no function": (lambda: argmin(3, PAIR), StructureError),
    "x0 is no tensor": (lambda: argmin(quadratic, "x"), StructureError),
    "x0 of integers": (lambda: argmin(quadratic, torch.zeros(2).long()), DtypeError),
    "l is no tensor": (lambda: argmin(quadratic, PAIR)(3.0), StructureError),
    "l of integers": (lambda: argmin(quadratic, PAIR)(torch.ones(2).long()), DtypeError),
    "solve is no function": (lambda: argmin(quadratic, PAIR, solve=3), ArgumentError),
    "an unknown method": (lambda: argmin(quadratic, PAIR, method="newton"), ArgumentError),
    "rtol < 0": (lambda: argmin(quadratic, PAIR, rtol=-1.0), ArgumentError),
    "no iterations": (lambda: argmin(quadratic, PAIR, max_iterations=0), ArgumentError),
    "f is no scalar": (lambda: argmin(lambda x, l: x - l, PAIR)(PAIR), FunctionError),
    "f does not depend on x": (
        lambda: argmin(lambda x, l: (l**2).sum(), PAIR)(PAIR),
        FunctionError,
    ),
    "solve returns another shape": (
        lambda: argmin(saddle, PAIR, solve=lambda x0, l: torch.zeros(3))(PAIR),
        FunctionError,
    ),
    "solve returns nothing": (
        lambda: argmin(saddle, PAIR, solve=lambda x0, l: None)(PAIR),
        StructureError,
    ),
    "solve returns NaN": (
        lambda: argmin(saddle, PAIR, solve=lambda x0, l: x0 / 0.0)(PAIR),
        NonFiniteError,
    ),
    "F is not like x": (lambda: root(lambda x, l: x[:1] - l[:1], PAIR)(PAIR), FunctionError),
    "F is NaN": (lambda: root(lambda x, l: x / 0 - l, PAIR)(PAIR), NonFiniteError),
    "T is not like x": (lambda: fixed_point(lambda x, l: [x, l], PAIR)(PAIR), FunctionError),
    "warm_start is no flag": (lambda: argmin(quadratic, PAIR, warm_start="no"), ArgumentError),
    "estimate_error is no flag": (
        lambda: root(quadratic, PAIR, estimate_error=1),
        ArgumentError,
    ),
    "outer is no function": (lambda: hypergradient(None, saddle, PAIR, PAIR), StructureError),
    "outer is no scalar": (
        lambda: hypergradient(lambda x, l: x, quadratic, L0, L0),
        FunctionError,
    ),
    "the adjoint does not fit": (
        lambda: hypergradient(lambda x, l: x.sum(), quadratic, L0, L0, adjoint=PAIR),
        HesseError,
    ),
}


@pytest.mark.parametrize(("call", "error"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(error) as caught:
        call()
    assert caught.value.remedy


def test_an_implicit_function_prints_on_one_line():
    x = argmin(quadratic, L0)
    assert repr(x) == "ArgMin(l) -> x: x: (6,)"
    assert x._repr_html_().startswith("<code>")
    assert isinstance(x.report, ImplicitReport) or x.report is None
