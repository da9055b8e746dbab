# SPDX-License-Identifier: Apache-2.0
"""Limits, Ctrl-C and checkpoints of `minimize`, within its inner solves too."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from hesse.errors import ArgumentError, HesseError, Status
from hesse.krylov import inverse_operator
from hesse.operators import function_operator
from hesse.optimize import least_squares, minimize
from hesse.optimize.minimize import METHODS as METHODS_BY_NAME
from hesse.risk.risk import Risk
from tests.smooth_functions import rosenbrock

DOUBLE = torch.float64
METHODS = ["enriched", "newton-cg", "trust-cg", "trust-krylov", "cubic", "lbfgs", "newton-minres"]

INNER = [name for name in METHODS if hasattr(METHODS_BY_NAME[name], "max_inner_iterations")]
INNER.remove("enriched")  # whose steps begin without an inner solve
ENDLESS = {name: replace(METHODS_BY_NAME[name], max_inner_iterations=10**6) for name in INNER}


def quartics(x):
    return ((x**2 - 1) ** 2).sum() + x[0] * x[1]


def ill_conditioned(n=300):
    Q = torch.linalg.qr(torch.randn(n, n, dtype=DOUBLE, generator=seeded()))[0]
    A = (Q * torch.logspace(0, 8, n, dtype=DOUBLE)) @ Q.T
    return lambda x: 0.5 * x @ (A @ x) + (x**4).sum() + torch.cos(x).sum()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def risk():
    x = torch.randn(90, 5, generator=seeded(), dtype=DOUBLE)
    y = torch.randint(0, 3, (90,), generator=seeded())
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    data = list(zip(x.split(50), y.split(50), strict=True))
    return Risk(model, nn.CrossEntropyLoss(), data, weight_decay=1e-2)


def flat(x):
    return torch.cat([leaf.flatten() for leaf in x.values()]) if isinstance(x, dict) else x


class Signal:
    """Ctrl-C after some seconds, and when it came."""

    def __init__(self, seconds):
        self.sent = 0.0
        self._timer = threading.Timer(seconds, self._send)
        self._timer.start()

    def _send(self):
        self.sent = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    @property
    def waited(self):
        """Seconds since then."""
        return time.monotonic() - self.sent


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", INNER)
def test_one_interrupt_ends_the_minimisation_within_an_inner_solve(method):
    f, start = ill_conditioned(), torch.full((300,), 3.0, dtype=DOUBLE)
    ctrl_c = Signal(1.0)
    deadline = time.monotonic() + 20
    result = minimize(
        f, start, ENDLESS[method], rtol=1e-15, max_iterations=10**6,
        callback=lambda state: time.monotonic() > deadline,
    )  # fmt: skip
    assert result.status is Status.INTERRUPTED
    assert ctrl_c.waited < 5.0  # of the 20; a busy machine takes its time
    assert result.fun <= float(f(start))


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(9)
@pytest.mark.parametrize("method", INNER)
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 61])
def test_the_limit_of_products_is_kept(method, limit):
    start = torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE)
    result = minimize(rosenbrock, start, method, max_products=limit)
    assert result.status is Status.MAX_PRODUCTS
    assert result.nhev <= limit
    assert result.fun == min(value for value, _ in result.history)
    many = minimize(rosenbrock, start, method, max_products=10_000)
    assert many.success


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("method", INNER)
def test_the_limit_of_seconds_is_kept_within_an_inner_solve(method):
    began = time.monotonic()
    result = minimize(
        ill_conditioned(), torch.full((300,), 3.0, dtype=DOUBLE), ENDLESS[method],
        rtol=1e-15, max_iterations=10**6, max_seconds=1.0,
    )  # fmt: skip
    assert result.status is Status.MAX_SECONDS
    assert time.monotonic() - began < 5.0


CASES = {
    "rosenbrock": (rosenbrock, torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE), {}),
    "saddle": (quartics, torch.zeros(6, dtype=DOUBLE), {}),
    "risk": (risk(), risk().params, {}),
    "ggn": (risk(), risk().params, {"curvature": "ggn"}),
}


@pytest.mark.some_cases(10)
@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_minimisation_goes_on_to_the_same_bits(name, method, tmp_path):
    f, start, options = CASES[name]
    whole = minimize(f, start, method, checkpoint=tmp_path / "whole", **options)
    assert whole.success
    for last in range(3, 1000, 7):

        def interrupt(state, last=last):
            if state.number == last:
                raise KeyboardInterrupt

        path = tmp_path / "parts"
        parts = minimize(f, start, method, checkpoint=path, callback=interrupt, **options)
        if parts.status is not Status.INTERRUPTED:
            break
    assert parts.status is whole.status
    assert torch.equal(flat(parts.x), flat(whole.x))
    assert (parts.nit, parts.nhev, parts.history) == (whole.nit, whole.nhev, whole.history)
    again = minimize(f, start, method, checkpoint=tmp_path / "parts", **options)
    assert torch.equal(flat(again.x), flat(whole.x))
    assert again.nhev == whole.nhev


def test_a_checkpoint_of_another_minimisation_is_refused(tmp_path):
    start, path = torch.tensor([-1.2, 1.0], dtype=DOUBLE), tmp_path / "run"
    minimize(rosenbrock, start, max_iterations=3, checkpoint=path)
    with pytest.raises(ArgumentError, match=r"method = TrustCG\(\)"):
        minimize(rosenbrock, start, "trust-cg", checkpoint=path)
    with pytest.raises(ArgumentError, match="x0 = "):
        minimize(rosenbrock, start + 1, checkpoint=path)
    with pytest.raises(ArgumentError, match="with this operator"):
        minimize(lambda x: 2 * rosenbrock(x), start, checkpoint=path)
    result = minimize(rosenbrock, start, checkpoint=path)  # limits may be others
    assert result.success


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_the_callers_is_changed(method):
    def f(x):
        x.data.mul_(0.5)
        return ((x - 1) ** 2).sum()

    start = nn.Parameter(torch.tensor([3.0, 4.0], dtype=DOUBLE))
    start.grad = torch.ones(2, dtype=DOUBLE)
    state = torch.random.get_rng_state()
    minimize(f, start, method, max_iterations=5)
    assert start.tolist() == [3.0, 4.0]
    assert start.grad.tolist() == [1.0, 1.0]
    assert start.requires_grad
    assert torch.equal(state, torch.random.get_rng_state())


def test_ctrl_c_in_a_solve_for_a_product_ends_the_outer_run():
    """A nested solve does not take the interrupt for its own."""
    from hesse.estimators import trace

    A, left = torch.diag(torch.linspace(1.0, 100.0, 60, dtype=DOUBLE)), [0]

    def product(v):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return A @ v

    H = function_operator(product, 60, symmetric=True, dtype=DOUBLE)
    left[0] = 3000
    inverse = inverse_operator(H)
    estimate = trace(inverse, method="hutchinson", rtol=0.0, max_products=10**4, generator=seeded())
    assert estimate.status is Status.INTERRUPTED
    left[0] = 10
    with pytest.raises(KeyboardInterrupt):
        inverse_operator(H) @ torch.ones(60, dtype=DOUBLE)


@pytest.mark.parametrize("call", ["minimize", "least_squares"])
def test_a_checkpoint_of_a_function_with_the_same_derivative_is_refused(call, tmp_path):
    """A Hessian does not see a linear term, a Jacobian no constant."""
    A = torch.linspace(1.0, 4.0, 12, dtype=torch.float64).view(4, 3).cos()

    def run(shift, **limits):
        x, path = torch.ones(3, dtype=torch.float64), tmp_path / "run"
        if call == "minimize":
            return minimize(
                lambda x: (x**4).sum() + (A @ x).cosh().sum() - shift * x.sum(),
                x,
                checkpoint=path,
                **limits,
            )
        return least_squares(lambda x: torch.sinh(A @ x) + shift, x, checkpoint=path, **limits)

    run(0.5, max_iterations=2)
    with pytest.raises(ArgumentError, match=r"a run with this operator (gradient|residuals)"):
        run(0.25)
    assert run(0.5).success


@pytest.mark.parametrize(
    "call",
    [
        lambda x: minimize(lambda x: (x**2).sum(), x),
        lambda x: minimize(lambda x: (x**2).sum(), x, method="lbfgs"),
        lambda x: least_squares(lambda x: torch.ones(3) + x.sum(), x),
    ],
)
def test_no_variables_are_refused(call):
    with pytest.raises(HesseError, match="x0 with at least one number"):
        call(torch.zeros(0))
