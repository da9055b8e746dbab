# SPDX-License-Identifier: Apache-2.0
"""L-BFGS and Newton's steps in turns, and rounding errors of f that are measured."""

import pytest
import torch

import hesse
from hesse.errors import DerivativeError, Status
from hesse.optimize.enriched import Alternating
from hesse.optimize.noise import measured_noise
from hesse.optimize.point import Objective
from hesse.testing import smooth_problems

DOUBLE = torch.float64
PROBLEMS = {problem.name: problem for problem in smooth_problems()}


def objective(f, x):
    return Objective(hesse.hessian_operator(f, x))


def test_well_conditioned_functions_take_no_product_before_the_certificate():
    d = torch.linspace(1.0, 5.0, 200, dtype=DOUBLE)
    seen = []
    result = hesse.minimize(
        lambda x: (d * (x - 1) ** 2).sum(), torch.zeros(200, dtype=DOUBLE),
        callback=lambda state: seen.append(state.products),
    )  # fmt: skip
    assert result.success
    assert seen[-2] == 0


@pytest.mark.slow
def test_newton_is_tried_where_lbfgs_is_slow_and_costs_no_more_than_it(monkeypatch):
    turns = []
    propose = Alternating.propose

    def watched(self, point, scalar):
        turns.append(self.state.is_quasi)
        return propose(self, point, scalar)

    monkeypatch.setattr(Alternating, "propose", watched)
    problem = PROBLEMS["matrix_square_root(n=100)"]
    both = hesse.minimize(problem.f, problem.x)
    alone = hesse.minimize(problem.f, problem.x, "lbfgs", max_iterations=5000)
    assert both.success
    assert not all(turns)
    assert turns[0]
    assert cost(both) < 2 * cost(alone)


def cost(result):
    return result.nfev / 3 + 2 * result.njev / 3 + 2 * result.nhev


@pytest.mark.parametrize("after", [60, 100])
def test_a_run_that_was_stopped_in_either_turn_goes_on_to_the_same_bits(after, tmp_path):
    problem = PROBLEMS["chained_rosenbrock(n=100)"]
    options = {"mode": "retained-graph", "max_iterations": 130}
    whole = hesse.minimize(problem.f, problem.x, checkpoint=tmp_path / "whole", **options)
    hesse.minimize(
        problem.f, problem.x, checkpoint=tmp_path / "run",
        callback=lambda state: state.number >= after, **options,
    )  # fmt: skip
    resumed = hesse.minimize(problem.f, problem.x, checkpoint=tmp_path / "run", **options)
    assert whole.history == resumed.history
    assert (whole.nfev, whole.nhev) == (resumed.nfev, resumed.nhev)
    assert whole.nhev > 0


def test_the_measured_noise_is_that_of_the_terms():
    """f = (1e8 + q) - 1e8 is rounded to multiples of 1.5e-8, although it is small."""
    x = torch.tensor([0.3, -0.2], dtype=DOUBLE)
    rounded = objective(lambda x: (1e8 + (x * x).sum()) - 1e8, x)
    noise = measured_noise(rounded, rounded.start(x))
    assert 1e-9 < noise < 3e-8
    exact = objective(lambda x: (x * x).sum(), x)
    assert measured_noise(exact, exact.start(x)) < 1e-15


@pytest.mark.parametrize("name", ["trid(n=50)", "arwhead(n=10)"])
def test_a_minimum_that_is_a_difference_of_large_terms_is_found(name):
    """Values say nothing below their rounding error: with eps |f| for it these ended STAGNATED."""
    problem = PROBLEMS[name]
    result = hesse.minimize(problem.f, problem.x)
    assert result.status is Status.CONVERGED
    leaf = problem.x.clone().requires_grad_()
    H = torch.autograd.functional.hessian(problem.f, result.x)
    (start,) = torch.autograd.grad(problem.f(leaf), leaf)
    assert float(torch.linalg.solve(H, result.jac) @ result.jac) < 1e-15 * float(start @ start)


def test_a_jacobian_of_the_callers_gives_the_same_fit():
    t = torch.linspace(0, 2, 30, dtype=DOUBLE)
    y = 2 * torch.exp(-0.7 * t) + 0.01 * torch.cos(40 * t)

    def r(x):
        return x[0] * torch.exp(-x[1] * t) - y

    x0 = torch.ones(2, dtype=DOUBLE)
    own, given = (hesse.least_squares(fit, x0) for fit in (r, (r, torch.func.jacrev(r))))
    torch.testing.assert_close(own.x, given.x, rtol=1e-12, atol=0)
    with pytest.raises(DerivativeError, match="another matrix"):
        hesse.least_squares((r, lambda x: 2 * torch.func.jacrev(r)(x)), x0)
    with pytest.raises(DerivativeError, match="shape"):
        hesse.least_squares((r, lambda x: torch.func.jacrev(r)(x).T), x0)
