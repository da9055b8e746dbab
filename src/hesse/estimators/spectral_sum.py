# SPDX-License-Identifier: Apache-2.0
"""tr f(A) by stochastic Lanczos quadrature, deep enough that quadrature adds little to the error.

Every probe gives a value and what its quadrature may be wrong by. The depth doubles until the mean
of the latter is below a fifth of the statistical error aimed at; what remains of it is added to the
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hesse.errors import Status
from hesse.estimators.arguments import too_small
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of
from hesse.estimators.probes import signs
from hesse.estimators.quadrature import Quadratures, vectors_held
from hesse.estimators.sampling import FIRST_CHECK, Sampler, Stream, Target
from hesse.operators.algebra import LinearOperator

FIRST_DEPTH = 16
_SHARE = 0.2  # of the standard error, that the quadrature may add

Evaluate = Callable[[Quadratures, int], tuple[float, float]]
"""Value and possible error of process i of some quadratures, for a probe of norm sqrt(n)."""


@dataclass
class SpectralSum(Stream):
    """The mean over probes, and that of what the quadratures may be wrong by."""

    doubt: RunningMean = field(default_factory=RunningMean)
    depth: int = FIRST_DEPTH

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The interval holds the truth in 95 of 100 runs for any quadrature error within the doubt.

        It does if it is wider by the doubt on each side, and too if doubt and standard error add as
        squares, which is less where the doubt is small.
        """
        count = self.samples.count
        if count == 0:
            return None
        quantile, error = quantile_of(count), self.samples.standard_error
        if count > 1:
            doubt = self.doubt.mean
            error = min(error + doubt / quantile, math.hypot(error, doubt))
        return Estimate(self.samples.mean, error, self.products, status, quantile)


def spectral_sum(sampler: Sampler[Target], evaluate: Evaluate) -> Estimate:
    """The trace of a function whose quadrature `evaluate` takes."""
    A, state = sampler.A, SpectralSum(sampler.generator)
    A.announce(FIRST_DEPTH * sampler.block_size)
    state.depth = min(FIRST_DEPTH, A.shape[0])
    if sampler.vectors < _held(A, state.depth):
        what = f"one probe of {state.depth} steps"
        too_small(A, _held(A, state.depth), sampler.vectors, what, sampler.call)

    def step() -> bool:
        together = max(1, sampler.vectors // _held(A, state.depth))
        k = min(together, sampler.block(state, cost=state.depth))
        if k < 1:
            return False
        quadratures = Quadratures(A, signs(A, k, state.generator), sampler.block_size, sampler.call)
        samples, doubts = _deep_enough(quadratures, k, sampler, state, evaluate)
        for doubt in doubts:
            state.doubt.add(doubt)
        state.add(samples, quadratures.products)
        return True

    return sampler.sample(state, step)


def _held(A: LinearOperator, depth: int) -> int:
    """Vectors of one process: a basis would be beside one of half the size as it grows."""
    return vectors_held(A.shape[0], depth + depth // 2)


def _deep_enough(
    quadratures: Quadratures,
    k: int,
    sampler: Sampler[Target],
    state: SpectralSum,
    evaluate: Evaluate,
) -> tuple[list[float], list[float]]:
    n = sampler.A.shape[0]
    while True:
        quadratures.extend(state.depth)
        pairs = [evaluate(quadratures, i) for i in range(k)]
        samples, doubts = [value for value, _ in pairs], [doubt for _, doubt in pairs]
        deeper = min(2 * state.depth, n)
        room = sampler.room(state) - quadratures.products >= k * (deeper - state.depth)
        fits = sampler.vectors >= k * _held(sampler.A, deeper)
        enough = sum(doubts) / k <= _SHARE * _aim(samples, sampler, state)
        if enough or deeper == state.depth or not room or not fits:
            return samples, doubts
        state.depth = deeper


def _aim(samples: list[float], sampler: Sampler[Target], state: SpectralSum) -> float:
    """The standard error to be had: the target, or what the products allow."""
    values = torch.tensor(samples, dtype=torch.float64)
    spread = float(values.std()) if len(samples) > 1 else 0.0
    if state.samples.count > 1:
        spread = state.samples.standard_error * state.samples.count**0.5
    most = max(FIRST_CHECK, sampler.room(state) // state.depth + state.samples.count)
    return max(sampler.target.tolerance(float(values.mean())), spread / most**0.5)
