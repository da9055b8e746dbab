# SPDX-License-Identifier: Apache-2.0
"""Diagonals that an operator computes for less than products: all of it, or a mean of samples."""

from __future__ import annotations

import torch

from hesse.errors import NonFiniteError
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun, RunningEstimate
from hesse.estimators.exact import ExactValue, exact_estimate
from hesse.operators.computed_diagonal import VECTORS_OF_A_PRODUCT, ComputedDiagonal
from hesse.vectors.space import Space

MOST_VECTORS = 256
"""The most vectors that are taken before it is known that sampling would not take fewer."""

# Samples that are taken in one sweep over the batches, if as many vectors fit into the budget.
_TOGETHER = 4


def computed_diagonal(run: EstimatorRun) -> Estimate | None:
    """The diagonal as the operator computes it; None where it has no way, or columns cost less."""
    way = run.A._computed_diagonal()
    if way is None or way.products >= run.A.domain.n:
        return None
    if way.num_vectors <= MOST_VECTORS and way.products <= run.limits.left():
        return _all(run, way)
    return _sampled(run, way)


def _all(run: EstimatorRun, way: ComputedDiagonal) -> Estimate:
    found = None
    with run.limits:
        found = _exact(run.A.domain, way)
    if found is None:
        raise KeyboardInterrupt
    estimate = exact_estimate(found, way.products)
    estimate.about = _about(way, f"exact, from {_vectors(way.num_vectors)}")
    return estimate


def _sampled(run: EstimatorRun, way: ComputedDiagonal) -> Estimate:
    """The mean of samples; all vectors, once these are fewer than the tolerance needs."""
    state = RunningEstimate(run.generator)
    run.exact = None  # columns take longer than all vectors
    together = max(1, min(_TOGETHER, run.max_vectors // 4))

    def step() -> bool:
        so_far = state.estimate()
        if state.is_due and so_far is not None:
            needed = min(run.criterion.excess(so_far) * state.products, run.room(state))
            if way.products <= needed:
                state.exact = _exact(run.A.domain, way)
                state.products += way.products
                return True
        count = run.next_samples(state, way.products_a_sample, least=together)
        samples = way.samples(count, state.generator)
        for sample in samples:
            _check_finite(run.A.domain, sample)
        state.add(samples, way.products_a_sample * count)
        return True

    estimate = run.sample(state, step)
    if state.exact is None:
        drawn = state.samples.count * VECTORS_OF_A_PRODUCT
        kind = f"{_vectors(drawn)} of random signs, of {way.num_vectors} for the exact one"
    else:
        kind = f"exact, from {_vectors(way.num_vectors)}"
    estimate.about = _about(way, kind)
    return estimate


def _exact(space: Space, way: ComputedDiagonal) -> ExactValue:
    diagonal = way.exact()
    _check_finite(space, diagonal)
    # Fresh memory for vectors would take as long as a matrix product: one zero stands for all.
    error, rounding = diagonal.new_zeros(1).expand_as(diagonal), torch.finfo(diagonal.dtype).eps
    return ExactValue(diagonal, error, relative_rounding=32.0 * rounding)


def _about(way: ComputedDiagonal, kind: str) -> str:
    return f"{kind}; {way.about}" if way.about else kind


def _vectors(count: int) -> str:
    return f"{count} vector{'' if count == 1 else 's'} at the outputs"


def _check_finite(space: Space, diagonal: torch.Tensor) -> None:
    if not space.all_finite(diagonal):
        raise NonFiniteError(
            expected="a finite diagonal",
            got="NaN or Inf in the squares of gradients",
            remedy="Check that the loss and its gradient are finite at this point.",
        )
