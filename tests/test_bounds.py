# SPDX-License-Identifier: Apache-2.0
"""`minimize` within bounds: against all faces, SciPy, and the conditions of a minimum."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hesse
from hesse.errors import ArgumentError, HesseError, Status
from hesse.krylov.preconditioners.quasi_newton import LimitedMemoryBFGS
from hesse.optimize import minimize
from hesse.optimize.compact_bfgs import CompactBFGS
from hesse.vectors import Space
from tests.smooth_functions import rosenbrock

DOUBLE = torch.float64
START = torch.tensor([-1.2, 1.0] * 5, dtype=DOUBLE)
METHODS = ["enriched", "lbfgs", "trust-cg"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def lowest_on_a_face(H, b, lower, upper):
    """The minimum of a convex quadratic in a box, by trying all faces."""
    n, best = len(b), math.inf
    for face in itertools.product((0, -1, 1), repeat=n):
        side = torch.tensor(face)
        x = torch.where(side < 0, lower, upper)
        free = side == 0
        if free.any():
            rest = b[free] - H[free][:, ~free] @ x[~free]
            x[free] = torch.linalg.solve(H[free][:, free], rest)
        if bool((x >= lower).all() and (x <= upper).all()):
            best = min(best, float(0.5 * x @ H @ x - b @ x))
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.05, 3.0), st.sampled_from(METHODS))
def test_a_convex_quadratic_has_its_minimum_on_the_best_face(seed, n, width, method):
    generator = seeded(seed)
    A = torch.randn(n, n, dtype=DOUBLE, generator=generator)
    H = A @ A.T + 0.1 * torch.eye(n, dtype=DOUBLE)
    b = torch.randn(n, dtype=DOUBLE, generator=generator)
    lower = torch.randn(n, dtype=DOUBLE, generator=generator)
    upper = lower + width
    start, bounds = (lower + upper) / 2, (lower, upper)
    result = minimize(lambda x: 0.5 * x @ H @ x - b @ x, start, method, bounds=bounds)
    assert result.success, result.message
    assert result.fun == pytest.approx(lowest_on_a_face(H, b, lower, upper), abs=1e-9)


@pytest.mark.some_cases(9)
@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("bounds", [(-1.5, 0.5), (0.2, 0.9), (None, 0.0), (1.5, None), (-3.0, 3.0)])
@pytest.mark.parametrize("method", METHODS)
def test_scipy_finds_no_lower_value(bounds, method):
    optimize = pytest.importorskip("scipy.optimize")
    low, high = (math.inf * s if b is None else b for s, b in zip((-1, 1), bounds, strict=True))
    start = START.clamp(low, high)
    gradient = torch.func.grad(rosenbrock)
    theirs = optimize.minimize(
        lambda x: float(rosenbrock(torch.from_numpy(x))), start.numpy(), method="L-BFGS-B",
        jac=lambda x: gradient(torch.from_numpy(x)).numpy(),
        bounds=[bounds] * 10, options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10**4},
    )  # fmt: skip
    result = minimize(rosenbrock, start, method, bounds=bounds)
    assert result.success, result.message
    assert result.fun == pytest.approx(theirs.fun, rel=1e-9, abs=1e-12)


@pytest.mark.some_cases(6)
@pytest.mark.parametrize("bounds", [(-1.5, 0.5), (0.2, 0.9), (1.5, 4.0)])
@pytest.mark.parametrize("method", METHODS)
def test_the_conditions_of_a_minimum_hold_to_the_bit_at_bounds(bounds, method):
    result = minimize(rosenbrock, START.clamp(*bounds), method, bounds=bounds)
    x, g = result.x, torch.func.grad(rosenbrock)(result.x)
    at_lower, at_upper = x == bounds[0], x == bounds[1]
    inside = ~(at_lower | at_upper)
    assert bool((at_lower | at_upper).any())
    assert bool((g[at_lower] > -1e-7).all())
    assert bool((g[at_upper] < 1e-7).all())
    assert float(g[inside].norm()) <= 1e-8 * result.history[0][1]
    H = torch.func.hessian(rosenbrock)(x)[inside][:, inside]
    if bool(inside.any()):
        assert result.min_curvature >= float(torch.linalg.eigvalsh(H)[0]) - 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_f_is_evaluated_within_the_bounds_only(method):
    def f(x):
        if bool((x < 1e-3).any()) or bool((x > 1.0).any()):
            raise KeyError("outside")
        return torch.sqrt(x).sum() + (x - 0.3).square().sum() - 2 * x.log1p().sum()

    result = minimize(f, torch.full((4,), 0.9, dtype=DOUBLE), method, bounds=(1e-3, 1.0))
    assert result.success


@pytest.mark.parametrize("method", METHODS)
def test_equal_bounds_hold_a_variable_fixed(method):
    low = torch.full((10,), -math.inf, dtype=DOUBLE)
    high = -low
    low[3] = high[3] = 0.7
    start = START.clone()
    start[3] = 0.7
    result = minimize(rosenbrock, start, method, bounds=(low, high))
    assert result.success
    assert float(result.x[3]) == 0.7
    free = torch.func.grad(rosenbrock)(result.x)[torch.arange(10) != 3]
    assert float(free.norm()) < 1e-6
    fixed = minimize(rosenbrock, start, method, bounds=(start, start))
    assert (fixed.success, fixed.nit) == (True, 0)
    assert torch.equal(fixed.x, start)


@pytest.mark.parametrize("method", METHODS)
def test_no_bounds_are_no_bounds(method):
    result = minimize(rosenbrock, START, method, bounds=(None, math.inf))
    assert result.success
    torch.testing.assert_close(result.x, torch.ones(10, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_bounds_are_given_in_many_forms():
    optimize = pytest.importorskip("scipy.optimize")
    tree = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.tensor(0.0, dtype=DOUBLE)}

    def f(p):
        return ((p["a"] - 2) ** 2).sum() + (p["b"] + 2) ** 2

    low = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.tensor(-1.0, dtype=DOUBLE)}
    for bounds in [(-1, 1), (low, 1.0), (low, None), (-1.0, torch.ones(3, dtype=DOUBLE))]:
        result = minimize(f, tree, bounds=bounds)
        upper = 2.0 if bounds[1] is None else 1.0
        torch.testing.assert_close(result.x["a"], torch.full((2,), upper, dtype=DOUBLE))
        assert float(result.x["b"]) == -1.0
    start = torch.zeros(2, dtype=DOUBLE)
    given = optimize.Bounds([0.5, -np.inf], [1.0, 0.25])
    with pytest.warns(UserWarning, match="outside of the bounds"):
        result = minimize(lambda x: (x - 3).square().sum(), start, bounds=given)
    assert result.x.tolist() == [1.0, 0.25]


@pytest.mark.parametrize(
    "fit",
    [
        lambda x, bounds: minimize(lambda p: ((p["a"] - 2) ** 2).sum() + (p["b"] + 2) ** 2, x,
                                   bounds=bounds),
        lambda x, bounds: hesse.least_squares(lambda p: {"a": p["a"] - 2, "b": p["b"] + 2}, x,
                                              bounds=bounds),
    ],
)  # fmt: skip
def test_a_number_bounds_a_whole_leaf(fit):
    tree = {"a": torch.zeros(2, dtype=DOUBLE), "b": torch.tensor(0.0, dtype=DOUBLE)}
    result = fit(tree, ({"a": None, "b": -1}, {"a": 0.5, "b": np.float64(3.0)}))
    assert result.x["a"].tolist() == [0.5, 0.5]
    assert float(result.x["b"]) == -1.0
    assert fit(tree, (None, torch.tensor(0.5, dtype=DOUBLE))).x["a"].tolist() == [0.5, 0.5]


@pytest.mark.filterwarnings("error")
def test_bounds_of_scipy_are_broadcast():
    optimize = pytest.importorskip("scipy.optimize")
    x = torch.full((3,), 0.5, dtype=DOUBLE)
    for box in (optimize.Bounds(0, 1), optimize.Bounds(0, [1, 1, 1]), optimize.Bounds(ub=1)):
        assert minimize(lambda x: (x - 3).square().sum(), x, bounds=box).x.tolist() == [1.0] * 3
    ends = ([0.0, None, 0.0], [None, 1.0, 1.0])
    result = minimize(lambda x: (x - 3).square().sum(), x, bounds=ends)
    torch.testing.assert_close(result.x, torch.tensor([3.0, 1.0, 1.0], dtype=DOUBLE))


@pytest.mark.filterwarnings("ignore:x0 is outside")
@pytest.mark.parametrize("n", [1, 2, 3])
def test_pairs_of_scipy_are_those_of_the_variables(n):
    """[(0, 1), (2, 3)] is not the pair of a lower (0, 1) and an upper (2, 3)."""
    pairs, x0 = [(0, 1), (2, 3), (None, 4)][:n], torch.full((n,), 0.5, dtype=DOUBLE)
    up = minimize(lambda x: (x - 9).square().sum(), x0, bounds=pairs)
    down = minimize(lambda x: (x + 9).square().sum(), x0, bounds=pairs)
    assert up.x.tolist() == [1.0, 3.0, 4.0][:n]
    torch.testing.assert_close(down.x, torch.tensor([0.0, 2.0, -9.0][:n], dtype=DOUBLE))


def test_pairs_of_scipy_are_refused_for_a_tree_and_for_another_number_of_variables():
    def f(p):
        return p[0].square().sum() + p[1].square().sum()

    tree = (torch.zeros(2, dtype=DOUBLE), torch.zeros(2, dtype=DOUBLE))
    with pytest.raises(ArgumentError, match="a list of pairs for a tree"):
        minimize(f, tree, bounds=[(0, 1), (2, 3)])
    with pytest.raises(HesseError, match="lower bound"):
        minimize(lambda x: x.square().sum(), tree[0], bounds=[(0, 1)] * 3)


def test_a_start_outside_is_projected_and_said():
    with pytest.warns(UserWarning, match="x0 is outside of the bounds; the start is 5.83 away"):
        result = minimize(lambda x: (x**2).sum(), torch.tensor([4.0, 6.0]), bounds=(None, 1.0))
    assert result.success


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ((1.0, 0.0), "not above"),
        ((None, math.nan), "NaN"),
        ((torch.tensor([0.0, math.nan], dtype=DOUBLE), 1.0), "NaN"),
        (3.0, "pair"),
        ((1.0, 2.0, 3.0), "pair"),
        ("box", "pair"),
    ],
)
def test_wrong_bounds_are_refused(bounds, text):
    with pytest.raises(ArgumentError, match=text):
        minimize(rosenbrock, torch.zeros(2, dtype=DOUBLE), bounds=bounds)
    with pytest.raises(hesse.HesseError, match="bound"):
        minimize(rosenbrock, torch.zeros(2, dtype=DOUBLE), bounds=(torch.zeros(3).double(), 1.0))


def test_a_method_without_bounds_is_refused():
    with pytest.raises(ArgumentError, match="trust-cg"):
        minimize(rosenbrock, START, "cubic", bounds=(-2.0, 2.0))


@pytest.mark.parametrize("method", METHODS)
def test_a_saddle_point_within_bounds_is_left(method):
    def f(x):
        return x[0] ** 2 - x[1] ** 2

    for start in ([0.0, 0.0], [1.0, 0.0]):
        result = minimize(f, torch.tensor(start, dtype=DOUBLE), method, bounds=(-1.0, 2.0))
        assert result.success, result.message
        assert result.fun in (pytest.approx(-1.0), pytest.approx(-4.0))
        assert abs(float(result.x[1])) in (1.0, 2.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_trial_point_that_is_not_finite_is_rejected(method):
    def f(x):  # NaN below zero, which the bounds allow
        return x.sum() - torch.log(x).sum() + 0.1 * x.sum() ** 2

    start = torch.tensor([9.0, 1e-4, 3.0], dtype=DOUBLE)
    result = minimize(f, start, method, bounds=(-1.0, 9.0))
    assert result.success
    assert float(torch.func.grad(f)(result.x).norm()) < 1e-6


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 61])
def test_the_limit_of_products_is_kept(limit):
    result = minimize(
        rosenbrock, START.clamp(0, 0.5), "trust-cg", bounds=(-0.5, 0.8), max_products=limit
    )
    assert result.nhev <= limit
    assert result.status is Status.MAX_PRODUCTS


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_minimisation_goes_on_to_the_same_bits(tmp_path, method):
    start, bounds = START.clamp(-0.5, 0.8), (-0.5, 0.8)
    whole = minimize(rosenbrock, start, method, bounds=bounds, checkpoint=tmp_path / "whole")
    for last in range(3, 100, 7):

        def interrupt(state, last=last):
            if state.number == last:
                raise KeyboardInterrupt

        path = tmp_path / "parts"
        parts = minimize(
            rosenbrock, start, method, bounds=bounds, checkpoint=path, callback=interrupt
        )
        if parts.status is not Status.INTERRUPTED:
            break
    assert torch.equal(parts.x, whole.x)
    assert (parts.nit, parts.nhev, parts.history) == (whole.nit, whole.nhev, whole.history)
    with pytest.raises(ArgumentError, match="upper"):
        minimize(rosenbrock, start, method, bounds=(-0.5, 0.9), checkpoint=tmp_path / "parts")


def test_many_variables_change_at_once():
    """An elastic string over an obstacle: 188 of 200 variables are at their bounds."""
    n = 200

    def energy(x):
        ends = 0.5 * (x[0] ** 2 + x[-1] ** 2)
        return 0.5 * (x[1:] - x[:-1]).square().sum() + ends + 0.02 * x.sum()

    for method in METHODS:
        result = minimize(energy, torch.zeros(n, dtype=DOUBLE), method, bounds=(-0.5, None))
        assert result.success
        assert int((result.x == -0.5).sum()) == 188
        assert result.fun == pytest.approx(-1.9154857142857142, rel=1e-12)
    assert result.nit <= 20


@pytest.mark.slow
def test_a_preconditioner_saves_products():
    d = torch.logspace(0, 5, 300, dtype=DOUBLE)

    def f(x):
        return 0.5 * (d * x * x).sum() + torch.cos(x - 1).sum() + 0.1 * x.sum() ** 2 - 2 * x.sum()

    start = torch.full((300,), 0.5, dtype=DOUBLE)
    plain = minimize(f, start, "trust-cg", bounds=(0.0, 0.9))
    M = hesse.diagonal_operator(1 / (d + 0.2))
    better = minimize(f, start, bounds=(0.0, 0.9), preconditioner=M)
    assert plain.success
    assert better.success
    assert better.fun == pytest.approx(plain.fun, rel=1e-12)
    assert better.nhev < plain.nhev
    with pytest.raises(ArgumentError, match="no preconditioner for L-BFGS within bounds"):
        minimize(f, start, "lbfgs", bounds=(0.0, 0.9), preconditioner=M)


def ill_conditioned_nnls(rows=120, columns=60):
    generator = seeded()
    A = torch.randn(rows, columns, dtype=DOUBLE, generator=generator)
    A *= torch.logspace(0, -3, columns, dtype=DOUBLE)
    return A, torch.randn(rows, dtype=DOUBLE, generator=generator)


@pytest.mark.slow
def test_newtons_steps_follow_where_quasi_newton_steps_crawl():
    nnls = pytest.importorskip("scipy.optimize").nnls
    A, b = ill_conditioned_nnls()
    x, residual = nnls(A.numpy(), b.numpy())
    start = torch.ones(60, dtype=DOUBLE)
    result = minimize(lambda x: 0.5 * (A @ x - b).square().sum(), start, bounds=(0.0, None))
    assert result.success
    assert result.nhev > 20  # besides the certificate
    assert result.fun == pytest.approx(0.5 * residual**2, rel=1e-12)
    assert int((result.x == 0.0).sum()) == int((x == 0.0).sum()) > 10


@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 4))
def test_parts_of_the_bfgs_matrix_are_solved_with(seed, n, m):
    generator = seeded(seed)
    S = torch.randn(m, n, dtype=DOUBLE, generator=generator)
    A = torch.randn(n, n, dtype=DOUBLE, generator=generator)
    Y = S @ (A @ A.T + torch.eye(n, dtype=DOUBLE))
    space, eye = Space.flat(n, DOUBLE), torch.eye(n, dtype=DOUBLE)
    inverse = LimitedMemoryBFGS(space, S, Y)
    H = torch.stack([inverse._matvec(e) for e in eye])
    B = CompactBFGS(space, list(S), list(Y))
    dense = torch.stack([B.product(e) for e in eye])
    scale = float(torch.linalg.cond(H)) * 1e-10
    torch.testing.assert_close(dense @ H, eye, atol=scale, rtol=0)
    mask = torch.rand(n, generator=generator) < 0.6
    r = mask * torch.randn(n, dtype=DOUBLE, generator=generator)
    p = B.solve(mask, r)
    assert not (p * ~mask).any()
    torch.testing.assert_close(mask * (dense @ p), r, atol=scale, rtol=0)


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_squares_beyond_the_range_of_float32_do_no_harm(scale):
    """Those of the gradients: steps would follow the gradient, or not be finite."""
    x0 = torch.full((10,), -1.0)
    same = minimize(rosenbrock, x0.double(), "lbfgs", bounds=(-1.5, 0.8))
    result = minimize(lambda x: scale * rosenbrock(x), x0, "lbfgs", bounds=(-1.5, 0.8))
    assert result.success
    assert result.fun / scale == pytest.approx(same.fun, rel=1e-4)
    assert result.nfev < 4 * same.nfev
