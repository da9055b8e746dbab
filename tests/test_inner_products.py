# SPDX-License-Identifier: Apache-2.0
"""Inner products, norms and probes of long vectors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hesse.errors import (
    NonFiniteError,
)
from hesse.vectors import Space
from hesse.vectors.inner_products import dot, norm

# --------------------------------------------------------------------------------------------------
# Inner products and probes


@given(st.integers(0, 99), st.integers(1, 3000))
@settings(max_examples=20)
def test_dot_of_float32_vectors_has_float64_accuracy(seed, n):
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, n, generator=generator)
    exact = math.fsum((u.double() * v.double()).tolist())
    # Products of two float32 are exact in float64; the sum rounds at most n times.
    bound = n * torch.finfo(torch.float64).eps * float((u.double() * v.double()).abs().sum())
    assert abs(dot(u, v) - exact) <= bound


def test_dot_over_several_chunks_keeps_its_accuracy():
    n = 3 * 2**20 + 5
    u = torch.full((n,), 0.1)
    exact = n * float(u[0].double()) ** 2
    rounding = 2 * torch.finfo(torch.float32).eps  # of equal entries: all goes one way
    assert dot(u, u) == pytest.approx(exact, rel=rounding)
    assert norm(u) == pytest.approx(math.sqrt(exact), rel=rounding)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_dot_and_norm_are_better_than_their_vectors(scale: float):
    u, v = scale * torch.randn(2, 300_007, generator=torch.Generator().manual_seed(0))
    left, right = u.double(), v.double()
    assert norm(u) == pytest.approx(float(left.norm()), rel=1e-8)
    assert dot(u, v) == pytest.approx(float(left @ right), abs=1e-8 * norm(u) * norm(v))
    assert dot(u, u) == pytest.approx(float(left @ left), rel=1e-8)


def test_norm_neither_overflows_nor_underflows_in_float32():
    assert norm(torch.full((4,), 1e30)) == pytest.approx(2e30, rel=1e-6)
    assert norm(torch.full((4,), 1e-30)) == pytest.approx(2e-30, rel=1e-6)


@pytest.mark.parametrize("draw", [Space.gaussian, Space.rademacher])
def test_probes_are_reproducible_and_leave_the_global_generator_alone(draw):
    space = Space.of({"a": torch.zeros(50, dtype=torch.float64)})
    before = torch.get_rng_state()
    first = draw(space, torch.Generator().manual_seed(1))
    again = draw(space, torch.Generator().manual_seed(1))
    other = draw(space, torch.Generator().manual_seed(2))
    assert first.dtype == torch.float64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_probes_have_the_moments_that_they_promise():
    space = Space.flat(100_000, torch.float64)
    generator = torch.Generator().manual_seed(0)
    signs, normal = space.rademacher(generator), space.gaussian(generator)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    standard_error = space.n**-0.5
    assert abs(float(signs.mean())) < 4 * standard_error
    assert abs(float(normal.mean())) < 4 * standard_error
    assert abs(float((normal**2).mean()) - 1.0) < 4 * math.sqrt(2) * standard_error


# --------------------------------------------------------------------------------------------------
# The methods for whole vectors

WHOLE = Space.of({"a": torch.zeros(30).double(), "b": torch.zeros(2, 5).double()})


def vectors(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, WHOLE.n, generator=generator, dtype=torch.float64)


def test_in_one_process_the_local_size_is_the_dimension():
    assert WHOLE.size == WHOLE.n == 40 == sum(WHOLE.sizes)
    assert WHOLE.zeros().shape == (WHOLE.size,)
    assert not WHOLE.any(WHOLE.zeros())


def test_inner_products_of_pairs_rows_and_matrices_agree():
    u, v, w = vectors(3)
    exact = [float(u @ v), float(v @ w), float(w @ w)]
    assert WHOLE.inner_pairs((u, v), (v, w), (w, w)) == pytest.approx(exact, rel=1e-14)
    assert [WHOLE.inner(u, v), WHOLE.inner(v, w), WHOLE.inner(w, w)] == pytest.approx(exact)
    assert WHOLE.inner_pairs() == []
    rows = vectors(4)
    torch.testing.assert_close(WHOLE.inners(rows, u), rows @ u)
    torch.testing.assert_close(WHOLE.inners(rows, rows[:2]), rows @ rows[:2].T)
    gram = WHOLE.gram(rows.float(), rows[:2].float())
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram, rows @ rows[:2].T, rtol=1e-5, atol=1e-5)


def test_norms_of_vectors_and_columns():
    rows = vectors(3)
    assert WHOLE.norm(rows[0]) == pytest.approx(float(rows[0].norm()), rel=1e-14)
    norms = WHOLE.column_norms(rows.T)
    assert norms.dtype == torch.float64
    torch.testing.assert_close(norms, rows.norm(dim=1))
    assert float(Space.flat(4).column_norms(torch.full((4, 1), 1e30))) == pytest.approx(2e30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_decisions_about_whole_vectors(bad):
    v = WHOLE.zeros()
    assert not WHOLE.any(v)
    assert WHOLE.all_finite(v)
    v[-1] = bad
    assert WHOLE.any(v)
    assert not WHOLE.all_finite(v)
    assert not WHOLE.all_finite(torch.stack([v, v], dim=1))
    assert WHOLE.first_bad_name(v) == "b"
    with pytest.raises(NonFiniteError, match="a finite b\n"):
        WHOLE.check_finite(v, "b")
    assert WHOLE.all_finite(torch.full((40,), 1e308, dtype=torch.float64))  # whose sum overflows
    assert not WHOLE.any(torch.zeros(40, dtype=torch.bool))
