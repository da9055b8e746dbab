# SPDX-License-Identifier: Apache-2.0
"""Steps of large matrices by a part of their singular values, against all of them."""

from __future__ import annotations

import math

import pytest
import torch

import hesse
from benchmarks.pinn.collocation import Collocation
from benchmarks.pinn.equations import burgers
from benchmarks.pinn.network import Network
from hesse.optimize.squares import fit, sketched_family
from hesse.optimize.squares.sketched_family import SketchedFamily
from hesse.optimize.squares.step_family import from_dense
from tests.curve_fits import DOUBLE, gaussian

EPSILON = {torch.float64: 4e-15, torch.float32: 1.2e-7}
SHAPES = [(500, 420), (420, 500), (450, 450)]


def falling(shape, last, rank=None):
    """A matrix whose singular values fall geometrically to `last`, and are zero beyond `rank`."""
    k = min(shape)
    U = torch.linalg.qr(gaussian(shape[0], k))[0]
    V = torch.linalg.qr(gaussian(shape[1], k, seed=1))[0]
    s = torch.logspace(0, math.log10(last), k, dtype=DOUBLE)
    if rank is not None:
        s[rank:] = 0.0
    return (U * s) @ V.T


def damped(A, f, damping):
    """The minimiser of |f + A p|^2 + damping |p|^2, by a QR factorisation of the whole."""
    n = A.shape[1]
    below = math.sqrt(damping) * torch.eye(n, dtype=DOUBLE)
    right = torch.cat([-f, torch.zeros(n, dtype=DOUBLE)])
    return torch.linalg.lstsq(torch.cat([A, below]), right[:, None]).solution[:, 0]


@pytest.fixture
def decomposed(monkeypatch):
    """The shapes of the matrices that were decomposed."""
    shapes = []

    def counted(A, *args):
        shapes.append(tuple(A.shape))
        return from_dense(A, *args)

    monkeypatch.setattr(sketched_family, "from_dense", counted)
    return shapes


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [1e-3, 0.1, 3.0])
def test_steps_are_those_of_all_singular_values(shape, dtype, radius, decomposed):
    """For the same damping: steps up to the tolerance, decreases far better."""
    A, f = falling(shape, 1e-14).to(dtype), gaussian(shape[0], seed=2).to(dtype)
    step = SketchedFamily(A, f, EPSILON[dtype], dtype).within(radius)
    exact = damped(A.double(), f.double(), step.damping)
    assert shape not in decomposed
    assert step.p.dtype == dtype
    assert step.is_limited
    assert step.length == pytest.approx(radius, rel=2e-3)
    tolerance = sketched_family._STEP_RTOL
    assert (step.p.double() - exact).norm() <= tolerance * step.length
    f, p = f.double(), step.p.double()

    def decrease(p):
        """Of the damped model."""
        return 0.5 * float(f @ f - (f + A.double() @ p).square().sum() - step.damping * p @ p)

    assert (1 - tolerance**2) * decrease(exact) <= decrease(p) <= decrease(exact) * (1 + 1e-9)
    undamped = decrease(p) + 0.5 * step.damping * float(p @ p)
    assert step.predicted == pytest.approx(undamped, rel=1e-2)


@pytest.mark.parametrize("radius", [0.1, 1e9])
def test_a_matrix_whose_values_fall_slowly_is_decomposed(radius, decomposed):
    A, f = gaussian(500, 420), gaussian(500, seed=2)
    family, exact = SketchedFamily(A, f, 4e-15, DOUBLE), from_dense(A, f, 4e-15, DOUBLE)
    assert torch.equal(family.within(radius).p, exact.within(radius).p)
    assert decomposed[-1] == (500, 420)
    assert sum(k for k, _ in decomposed[:-1]) < 0.4 * 420
    assert family.full_length == exact.full_length
    assert family.full_decrease == exact.full_decrease


@pytest.mark.parametrize("shape", SHAPES)
def test_a_matrix_of_low_rank_is_never_decomposed(shape, decomposed):
    """A sketch that spans it gives the step without damping."""
    A, f = falling(shape, 1e-6, rank=40), gaussian(shape[0], seed=2)
    family = SketchedFamily(A, f, 4e-15, DOUBLE)
    step = family.within(1e9)
    expected = -torch.linalg.pinv(A, rtol=1e-13) @ f
    assert not step.is_limited
    assert torch.allclose(step.p, expected, rtol=0, atol=1e-9 * float(expected.norm()))
    assert family.is_within(1.001 * step.length)
    assert not family.is_within(0.999 * step.length)
    second = family.correction(f, 0.0)
    assert second is not None
    assert torch.allclose(second, step.p)
    assert shape not in decomposed


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_that_leaves_next_to_nothing_of_f_will_do(shape, decomposed):
    """With f in the range of large singular values, small ones would only make it longer."""
    A = falling(shape, 1e-36)
    f = A @ gaussian(shape[1], seed=2)
    family = SketchedFamily(A, f, 4e-15, DOUBLE)
    radius = 0.9 * family._family.full_length
    step = family.within(radius)
    assert shape not in decomposed
    assert step.length <= radius * (1 + 2e-3)
    left = f + A @ step.p
    assert float(left @ left) <= 0.01 * float(f @ f)
    assert step.predicted == pytest.approx(0.5 * float(f @ f - left @ left), rel=1e-2)
    # What A cannot reach makes f large again.
    unreachable = f + gaussian(shape[0], seed=3)
    SketchedFamily(A, unreachable, 4e-15, DOUBLE).within(1e9)
    assert shape in decomposed


def test_what_the_first_columns_do_not_see_is_promised():
    """f has no part but along small singular values."""
    A = falling((500, 420), 1e-8)
    U, _, _ = torch.linalg.svd(A)
    f = 3.0 * U[:, 300]
    family, exact = SketchedFamily(A, f, 4e-15, DOUBLE), from_dense(A, f, 4e-15, DOUBLE)
    for decrease in (1e-6, 0.1, 4.0):
        assert family.promises(decrease)
        assert exact.promises(decrease)
    assert not family.promises(4.6)
    radius = 1e-3 * exact.full_length
    assert not family.is_within(radius)
    step = family.within(radius)
    difference = step.p - damped(A, f, step.damping)
    assert difference.norm() <= sketched_family._STEP_RTOL * radius


def test_the_whole_step_is_not_said_to_be_as_short_as_one_that_leaves_little():
    """What this one leaves lies along small singular values, and is most of the whole one."""
    A = falling((440, 420), 1e-20)
    f = A @ gaussian(420, seed=2)
    radius = 0.9 * from_dense(A, f, 4e-15, DOUBLE).full_length
    family = SketchedFamily(A, f, 4e-15, DOUBLE)
    assert not family.within(radius).is_limited
    assert not family.is_within(radius)


def test_nothing_to_do():
    for A, f in [(torch.zeros(300, 200), gaussian(300)), (gaussian(300, 200), torch.zeros(300))]:
        family = SketchedFamily(A.double(), f.double(), 4e-15, DOUBLE)
        step = family.within(1.0)
        assert not step.is_limited
        assert float(step.p.norm()) == 0.0
        assert not family.promises(0.0)
        assert family.full_length == 0.0


# --------------------------------------------------------------------------------------------------
# In a fit


def network_fit(method, count, **options):
    """Burgers' equation by a network of 456 parameters, at 512 points and 64 more."""
    equation = burgers()
    network = Network(11, 4, equation.domain, is_periodic=True)
    residuals = Collocation(equation, network, 512, DOUBLE)
    options = {"x_scale": 1.0, "ftol": 0.0, "xtol": 0.0, "gtol": 0.0, **options}
    pair, x0 = (residuals.residuals, residuals.jacobian), network.start(0, DOUBLE)
    return hesse.least_squares(pair, x0, method, max_iterations=count, **options)


@pytest.fixture
def keeps_sketching(monkeypatch):
    """Of so small a matrix as in these tests the whole would be taken sooner."""
    monkeypatch.setattr(sketched_family, "_MOST", 0.9)
    monkeypatch.setattr(sketched_family, "_LITTLE", 0.9)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svd", "svd-long"])
def test_a_fit_is_that_by_all_singular_values(method, monkeypatch, decomposed, keeps_sketching):
    first, eighth = network_fit(method, 1), network_fit(method, 8)
    assert (576, 456) not in decomposed
    monkeypatch.setattr(fit, "_LEAST_SKETCHED", 10**9)
    start, by_all = network_fit(method, 0), network_fit(method, 1)
    assert (first.x - by_all.x).norm() <= 0.1 * (by_all.x - start.x).norm()
    assert first.cost == pytest.approx(by_all.cost, rel=0.01)
    assert eighth.cost <= 2 * network_fit(method, 8).cost


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [None, (-1.5, 1.5)])
def test_a_killed_fit_goes_on_to_the_same_bits(tmp_path, bounds, decomposed, keeps_sketching):
    expected = network_fit("svd-long", 6, bounds=bounds)
    assert (576, 456) not in decomposed
    for count in (2, 4, 6):
        options = {"bounds": bounds, "checkpoint": tmp_path / "run"}
        result = network_fit("svd-long", count, **options)
    assert result.nit == expected.nit == 6
    assert torch.equal(result.x, expected.x)
    if bounds is not None:
        assert float(result.x.abs().max()) == 1.5
        assert bool((result.active_mask != 0).any())
