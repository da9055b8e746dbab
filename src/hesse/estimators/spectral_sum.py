# SPDX-License-Identifier: Apache-2.0
"""tr f(A) by stochastic Lanczos quadrature, deep enough that quadrature adds little to the error.

Every probe gives a value and a bound of its quadrature error. The depth doubles until the mean of
these bounds is below a fifth of the statistical error aimed at; the interval contains what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hesse.errors import Status
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of
from hesse.estimators.estimator_run import EstimatorRun, RunningEstimate
from hesse.estimators.probes import signs
from hesse.estimators.quadrature import Quadratures, vectors_held
from hesse.estimators.tolerance import FIRST_CHECK, Tolerance
from hesse.estimators.vector_budget import raise_too_small
from hesse.operators.algebra import LinearOperator

FIRST_DEPTH = 16
LEAST_PRODUCTS = 2 * FIRST_DEPTH * FIRST_CHECK
"""What a sum takes that goes deeper once, as most do; exact up to this dimension."""
_FRACTION = 0.2  # of the standard error that the quadrature may add

Evaluate = Callable[[Quadratures, int], tuple[float, float]]
"""Value, and bound of its error, from process i of some quadratures, for |z| = sqrt(n)."""


@dataclass
class SpectralSum(RunningEstimate):
    """The mean over probes, and the mean bound of their quadrature errors."""

    bias: RunningMean = field(default_factory=RunningMean)
    depth: int = FIRST_DEPTH

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The interval holds the truth in 95 of 100 runs for any bias within its bound.

        It does if it is wider by the bound on each side, and also if bound and standard error add
        as squares, which is less where the bound is small.
        """
        count = self.samples.count
        if count == 0 or self.exact is not None:
            return super().estimate(status)
        quantile, error = quantile_of(count), self.samples.standard_error
        if count > 1:
            bias = self.bias.mean
            error = min(error + bias / quantile, math.hypot(error, bias))
        return Estimate(self.samples.mean, error, self.products, status, quantile)


def spectral_sum(run: EstimatorRun[Tolerance], evaluate: Evaluate) -> Estimate:
    """The trace of the function whose quadrature `evaluate` takes."""
    A, state = run.A, SpectralSum(run.generator)
    A.announce(FIRST_DEPTH * run.block_size)
    state.depth = min(FIRST_DEPTH, A.domain.n)
    if run.max_vectors < _held(A, state.depth):
        purpose = f"one probe of {state.depth} steps"
        raise_too_small(A, _held(A, state.depth), run.max_vectors, purpose)

    def step() -> bool:
        together = max(1, run.max_vectors // _held(A, state.depth))
        k = min(together, run.next_samples(state, cost=state.depth))
        if k < 1:
            return False
        quadratures = Quadratures(A, signs(A.domain, k, state.generator), run.block_size)
        samples, bounds = _deep_enough(quadratures, k, run, state, evaluate)
        # Also where the exact answer is due: they are the answer if that is interrupted.
        for bound in bounds:
            state.bias.add(bound)
        state.add(samples, quadratures.products)
        return True

    return run.sample(state, step)


def _held(A: LinearOperator, depth: int) -> int:
    """Vectors of one process; while its basis grows, one of half the size is beside it."""
    return vectors_held(A.domain.n, depth + depth // 2)


def _deep_enough(
    quadratures: Quadratures,
    k: int,
    run: EstimatorRun[Tolerance],
    state: SpectralSum,
    evaluate: Evaluate,
) -> tuple[list[float], list[float]]:
    """Samples and bounds of their bias, after as many steps as make the bias small enough."""
    n, is_first = run.A.domain.n, state.samples.count == 0
    while True:
        quadratures.extend(state.depth)
        pairs = [evaluate(quadratures, i) for i in range(k)]
        samples, bounds = [value for value, _ in pairs], [bound for _, bound in pairs]
        remaining = _remaining(quadratures, samples, run, state)
        taken = state.products + quadratures.products
        if is_first and k > 1 and run.takes_exact(remaining, taken):
            run.is_exact_due = True
            return samples, bounds
        deeper = min(2 * state.depth, n)
        affordable = run.room(state) - quadratures.products >= k * (deeper - state.depth)
        fits = run.max_vectors >= k * _held(run.A, deeper)
        enough = sum(bounds) / k <= _FRACTION * _attainable_error(samples, run, state)
        if enough or deeper == state.depth or not affordable or not fits:
            return samples, bounds
        state.depth = deeper
        run.is_exact_due = run.takes_exact(_remaining(quadratures, samples, run, state), taken)
        if run.is_exact_due:
            return samples, bounds


def _remaining(
    quadratures: Quadratures, samples: list[float], run: EstimatorRun[Tolerance], state: SpectralSum
) -> float:
    """How many products more this depth takes, for as many samples as the tolerance needs."""
    values = torch.tensor(samples, dtype=torch.float64)
    admissible = run.criterion.at(float(values.mean()))
    spread = float(values.std()) if len(samples) > 1 else 0.0
    needed = (spread / admissible) ** 2 if admissible > 0.0 else math.inf
    count = max(FIRST_CHECK, needed) - state.samples.count
    return min(count * state.depth, run.room(state)) - quadratures.products


def _attainable_error(
    samples: list[float], run: EstimatorRun[Tolerance], state: SpectralSum
) -> float:
    """The standard error aimed at: by the tolerance, or by what max_products allows."""
    values = torch.tensor(samples, dtype=torch.float64)
    spread = float(values.std()) if len(samples) > 1 else 0.0
    if state.samples.count > 1:
        spread = state.samples.standard_error * state.samples.count**0.5
    most = max(FIRST_CHECK, run.room(state) // state.depth + state.samples.count)
    return max(run.criterion.at(float(values.mean())), spread / most**0.5)
