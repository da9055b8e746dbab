# SPDX-License-Identifier: Apache-2.0
"""The small problems of trust-krylov and cubic, and the Krylov model, against dense solutions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import NonFiniteError
from hesse.krylov.krylov_model import KrylovModel
from hesse.krylov.secular import with_cubic, within_ball
from hesse.krylov.system import System
from hesse.operators import dense_operator, diagonal_operator, function_operator

DOUBLE = torch.float64


def value(values, slope, y):
    return slope @ y + 0.5 * y @ (values * y)


numbers = st.floats(-10, 10, allow_subnormal=False).map(lambda x: 0.0 if abs(x) < 1e-12 else x)
pairs = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(pairs, st.floats(1e-3, 1e3))
def test_the_minimum_in_a_ball_is_global(pairs, radius):
    """The conditions of Moré and Sorensen are necessary and sufficient."""
    values, slope = (np.array(x) for x in zip(*sorted(pairs), strict=True))
    y, shift = within_ball(values, slope, radius)
    scale = max(1.0, np.abs(values).max(), np.abs(slope).max())
    assert shift >= max(0.0, -values[0])
    assert np.linalg.norm(y) <= radius * (1 + 1e-10)
    residual = (values + shift) * y + slope
    assert np.abs(residual).max() <= 1e-10 * scale * max(1.0, radius)
    if shift > 1e-12 * scale:
        assert np.linalg.norm(y) == pytest.approx(radius, rel=1e-8)


@settings(max_examples=150, deadline=None)
@given(pairs, st.floats(1e-3, 1e3))
def test_the_minimum_with_a_cubic_term_is_global(pairs, sigma):
    values, slope = (np.array(x) for x in zip(*sorted(pairs), strict=True))
    y, shift = with_cubic(values, slope, sigma)
    scale = max(1.0, np.abs(values).max(), np.abs(slope).max(), sigma)
    assert shift >= max(0.0, -values[0])
    residual = (values + shift) * y + slope
    assert np.abs(residual).max() <= 1e-10 * scale * max(1.0, np.linalg.norm(y))
    assert shift == pytest.approx(sigma * np.linalg.norm(y), rel=1e-7, abs=1e-9 * scale)


@pytest.mark.parametrize("slope", [[0.0, 1.0, 1.0], [1e-17, 1.0, 1.0], [1e-160, 1.0, 1.0]])
def test_the_hard_case(slope):
    """The gradient has nothing, or next to nothing, along the lowest eigenvector."""
    values, slope = np.array([-2.0, 1.0, 3.0]), np.array(slope)
    y, shift = within_ball(values, slope, 5.0)
    assert shift == pytest.approx(2.0)
    assert np.linalg.norm(y) == pytest.approx(5.0)
    rest = [-1 / 3, -1 / 5]
    assert y[1:] == pytest.approx(rest)
    assert abs(y[0]) == pytest.approx(math.sqrt(25 - 1 / 9 - 1 / 25))
    y, shift = with_cubic(values, slope, 0.1)
    assert shift == pytest.approx(2.0)
    assert np.linalg.norm(y) == pytest.approx(20.0)


def indefinite(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(n, n, dtype=DOUBLE, generator=generator)
    g = torch.randn(n, dtype=DOUBLE, generator=generator)
    return (A + A.T) / 2, g


def spd(n, seed):
    A, _ = indefinite(n, seed)
    return A @ A + torch.eye(n, dtype=DOUBLE)


@pytest.mark.parametrize("is_preconditioned", [False, True])
@pytest.mark.parametrize("subproblem", [within_ball, with_cubic])
def test_the_krylov_minimum_is_that_of_the_whole_space(subproblem, is_preconditioned):
    """After n products; with M the norm is that of M^-1: s = L y with M = LL'."""
    H, g = indefinite()
    M = spd(30, 1) if is_preconditioned else torch.eye(30, dtype=DOUBLE)
    L = torch.linalg.cholesky(M)
    values, vectors = torch.linalg.eigh(L.T @ H @ L)
    slope = vectors.T @ (L.T @ g)
    preconditioner = dense_operator(M) if is_preconditioned else None
    model = KrylovModel(System(dense_operator(H), -g, None, preconditioner), 30)
    while not model.is_full:
        model.extend()
    assert model.size == 30
    for scalar in (1e-2, 1.0, 30.0):
        y, shift = subproblem(values.numpy(), slope.numpy(), scalar)
        found = model.minimise(subproblem, scalar)
        s = model.step(found)
        torch.testing.assert_close(s, L @ (vectors @ torch.from_numpy(y)), atol=1e-8, rtol=1e-7)
        assert found.shift == pytest.approx(shift, rel=1e-8)
        assert found.value == pytest.approx(float(g @ s + 0.5 * s @ H @ s), rel=1e-9)
        assert found.length == pytest.approx(float((s @ torch.linalg.solve(M, s)).sqrt()))


@pytest.mark.parametrize("is_preconditioned", [False, True])
def test_the_residual_norm_is_that_of_the_step(is_preconditioned):
    H, g = indefinite(40)
    M = spd(40, 1) if is_preconditioned else torch.eye(40, dtype=DOUBLE)
    preconditioner = dense_operator(M) if is_preconditioned else None
    model = KrylovModel(System(dense_operator(H), -g, None, preconditioner), 40)
    for _ in range(20):
        model.extend()
        found = model.minimise(within_ball, 0.7)
        s = model.step(found)
        r = H @ s + found.shift * torch.linalg.solve(M, s) + g
        assert found.residual_norm == pytest.approx(float((r @ M @ r).sqrt()), rel=1e-6, abs=1e-9)


def test_another_radius_takes_no_product():
    products = [0]
    H, g = indefinite()

    def product(v):
        products[0] += 1
        return H @ v

    A = function_operator(product, 30, symmetric=True, dtype=DOUBLE)
    model = KrylovModel(System(A, -g), 30)
    for _ in range(12):
        model.extend()
    taken = products[0]
    lengths = [model.minimise(within_ball, radius).length for radius in (1.0, 0.5, 0.1)]
    assert lengths == pytest.approx([1.0, 0.5, 0.1])
    assert products[0] == taken


def test_a_small_space_is_seen_beyond_an_invariant_subspace():
    """The gradient is an eigenvector; the lowest eigenvector is orthogonal to it: the hard case."""
    A = diagonal_operator(torch.tensor([2.0, -1.0, 3.0], dtype=DOUBLE))
    model = KrylovModel(System(A, torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE)), 10)
    while not model.is_full:
        model.extend()
    s = model.step(model.minimise(within_ball, 2.0)).abs()
    expected = torch.tensor([1 / 3, math.sqrt(4 - 1 / 9), 0.0], dtype=DOUBLE)
    torch.testing.assert_close(s, expected)


def test_a_product_that_is_not_finite_is_an_error():
    A = function_operator(lambda v: v * math.nan, 3, symmetric=True, dtype=DOUBLE)
    model = KrylovModel(System(A, torch.ones(3, dtype=DOUBLE)), 3)
    model.extend()
    with pytest.raises(NonFiniteError):
        model.minimise(within_ball, 1.0)
