# SPDX-License-Identifier: Apache-2.0
"""What the comparison of minimisers counts and says: against what is known."""

import math

import pytest
import torch

import hesse
from benchmarks.pinn.collocation import Collocation
from benchmarks.pinn.equations import EQUATIONS
from benchmarks.pinn.network import Jet, Network
from benchmarks.suite.counted import Counted
from benchmarks.suite.profiles import curves, taken
from benchmarks.suite.verdict import verdict
from hesse.testing import Problem, smooth_problems

DOUBLE = torch.float64


@pytest.mark.parametrize("method", ["enriched", "trust-krylov", "newton-minres"])
def test_the_counts_are_those_of_the_result(method):
    problem = {p.name: p for p in smooth_problems()}["wood"]
    f = Counted(problem.f)
    result = hesse.minimize(f, problem.x, method, mode="retained-graph")
    counts = f.counts
    assert (counts.values, counts.gradients, counts.products) == (
        result.nfev, result.njev, result.nhev,
    )  # fmt: skip
    assert f.path[-1].value == pytest.approx(result.fun, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "kind"),
    [([1.0, 0.0], "minimum"), ([0.0, 0.0], "saddle"), ([0.5, 0.0], "not stationary")],
)
def test_the_verdict_knows_minima_saddles_and_other_points(x, kind):
    problem = Problem(
        "wells", lambda x: (x[0] ** 2 - 1) ** 2 + x[1] ** 2, torch.tensor([2.0, 1.0], dtype=DOUBLE)
    )
    assert verdict(problem, torch.tensor(x, dtype=DOUBLE)).kind == kind


def test_a_profile_counts_what_a_run_took_to_its_own_minimum():
    run = {"path": [[10.0, 1.0, 0, 0.0], [5.5, 2.0, 1, 0.0], [5.0, 9.0, 3, 0.0]]}
    assert taken(run, [0.0, 5.0], 0.1, "cost") == 2.0  # 5.5 is within a tenth of 10 - 5 above 5
    assert taken(run, [0.0, 5.0], 1e-3, "products") == 3.0
    assert taken(run, [0.0], 1e-3, "cost") == math.inf
    times = torch.tensor([[1.0, 4.0, math.inf], [2.0, 1.0, math.inf]]).numpy()
    parts = curves(times, torch.tensor([1.0, 2.0, 4.0]).numpy())
    assert parts.round(3).tolist() == [[0.333, 0.333, 0.667], [0.333, 0.667, 0.667]]


@pytest.mark.parametrize("name", EQUATIONS)
def test_the_exact_solution_solves_the_equation(name):
    equation = EQUATIONS[name]()
    (t0, t1), (x0, x1) = equation.domain
    unit = torch.rand(2, 20, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    t, x = t0 + (t1 - t0) * unit[0].requires_grad_(), x0 + (x1 - x0) * unit[1].requires_grad_()

    def d(y, z):
        (g,) = torch.autograd.grad(y.sum(), z, create_graph=True, materialize_grads=True)
        return g

    u = equation.exact(t, x)
    ut, ux = d(u, t), d(u, x)
    left = equation.inside(Jet(u, ut, ux, d(ut, t), d(ux, x)), t, x)
    assert float(left.detach().abs().max()) < 1e-10


def test_the_jacobian_of_collocation_is_that_of_autograd():
    for name in ("burgers", "wave", "reaction"):
        equation = EQUATIONS[name]()
        network = Network(4, 2, equation.domain)
        problem = Collocation(equation, network, 16, DOUBLE)
        theta = network.start(0, DOUBLE)
        expected = torch.func.jacrev(problem.residuals)(theta)
        torch.testing.assert_close(problem.jacobian(theta), expected, rtol=1e-10, atol=1e-12)
