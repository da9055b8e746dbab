# SPDX-License-Identifier: Apache-2.0
"""Implicit derivatives against closed forms, dense definitions and finite differences."""

import warnings

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, vmap

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
from tests.implicit_problems import (
    DOUBLE,
    FUNCTIONS,
    L0,
    OPTIONS,
    N,
    close,
    quadratic,
    random,
    weigh,
)


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


@pytest.mark.fast_cases(1)
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


@pytest.mark.slow
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


def test_a_root_that_is_not_isolated_warns_of_a_singular_jacobian():
    M = torch.ones(2, 2, dtype=DOUBLE)
    x = root(lambda x, l: M @ x - l, torch.zeros(2, dtype=DOUBLE))
    with pytest.warns(UserWarning, match="The Jacobian may be singular"):
        x(torch.ones((), dtype=DOUBLE, requires_grad=True))[0].backward()


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


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_point_that_is_no_solution_warns(kind):
    make, explicit = FUNCTIONS[kind]
    for error, warns in ((0.5, True), (1e-3, False)):
        x, l = make(solve=lambda x0, l: explicit(l) + error, **OPTIONS), L0.clone()  # noqa: B023
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x(l.requires_grad_()).sum().backward()
        assert ["is no solution" in str(w.message) for w in caught] == [True] * warns


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
