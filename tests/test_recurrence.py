# SPDX-License-Identifier: Apache-2.0
"""The Lanczos recurrence without its basis: copies of eigenvalues come, and do no harm to sums."""

from __future__ import annotations

import pytest
import torch

from hesse.errors import OperatorError
from hesse.estimators.quadrature import gauss
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.recurrence import Recurrence
from hesse.operators import diagonal_operator, function_operator

DOUBLE = torch.float64
OUTLIERS = torch.tensor([5.0, 7.0, 8.0, 12.0, 20.0], dtype=DOUBLE)


def spectrum(n: int) -> torch.Tensor:
    """Values in [0, 1], and some far above."""
    values = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    values[:5] = OUTLIERS
    return values


def start(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def run(process, steps: int):
    for _ in range(steps):
        process.take_in(process.A @ process.following)
    return process


def test_it_is_the_lanczos_process_as_long_as_that_is_orthogonal_by_itself():
    A, v = diagonal_operator(torch.rand(300, dtype=DOUBLE)), start(300)
    ours, theirs = run(Recurrence(A, v), 12), LanczosProcess(A, 12, v, None)
    theirs.extend(12)
    for some, other in zip(ours.tridiagonal, theirs.tridiagonal, strict=True):
        assert some == pytest.approx(other, rel=1e-10)


@pytest.mark.parametrize(("dtype", "rounding"), [(DOUBLE, 1e-11), (torch.float32, 3e-5)])
def test_copies_share_the_weight_of_their_eigenvalue(dtype, rounding):
    n, steps = 5000, 120
    values, v = spectrum(n), start(n)
    A = diagonal_operator(values.to(dtype))
    nodes, weights = gauss(*run(Recurrence(A, v.to(dtype)), steps).tridiagonal)
    exact = v.square() / v.square().sum()
    at_the_top = (nodes - 20.0).abs() < 1e-2
    assert at_the_top.sum() > 2  # or this test shows nothing
    for outlier in OUTLIERS:
        found = float(weights[(nodes - outlier).abs() < 1e-2].sum())
        assert found == pytest.approx(float(exact[values == outlier].sum()), abs=rounding)
    for degree in range(steps):  # Chebyshev moments of the whole interval
        cosine = [
            torch.cos(degree * torch.arccos((x / 10 - 1).clamp(-1, 1))) for x in (nodes, values)
        ]
        assert float(weights @ cosine[0]) == pytest.approx(float(exact @ cosine[1]), abs=rounding)
    assert float(weights @ (nodes + 0.1).log()) == pytest.approx(
        float(exact @ (values + 0.1).log()), abs=rounding
    )


def test_it_ends_in_an_invariant_subspace():
    A = diagonal_operator(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=DOUBLE))
    process = run(Recurrence(A, torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0], dtype=DOUBLE)), 2)
    assert process.is_invariant
    nodes, weights = gauss(*process.tridiagonal)
    torch.testing.assert_close(nodes, torch.tensor([2.0, 8.0], dtype=DOUBLE))
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.8], dtype=DOUBLE))


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_multiple_of_the_identity_ends_at_once(value):
    process = run(Recurrence(value * diagonal_operator(torch.ones(4)), torch.ones(4)), 1)
    assert process.is_invariant
    assert process.tridiagonal == ([value], [0.0])


def test_it_keeps_its_start():
    v = torch.ones(4)
    run(Recurrence(diagonal_operator(torch.arange(4.0)), v), 3)
    assert v.tolist() == [1.0, 1.0, 1.0, 1.0]


def test_an_operator_that_is_wrongly_called_symmetric_is_refused():
    M = torch.randn(50, 50, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    liar = function_operator(lambda v: M @ v, 50, dtype=DOUBLE, symmetric=True)
    with pytest.raises(OperatorError, match="a symmetric operator, as symmetric=True says"):
        run(Recurrence(liar, start(50)), 3)
