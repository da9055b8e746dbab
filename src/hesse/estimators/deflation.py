# SPDX-License-Identifier: Apache-2.0
r"""Deflation: the part of an operator on a few directions Q is computed, the rest is sampled.

Q is an orthonormal basis of A Z for random signs Z, ten at a time. Before ten products A Z are
added to Q they show how much is left outside of it: a column of (I - QQ') A Z has the mean square
|(I - QQ')A|_F^2. How much would be left with these ten in Q as well is estimated by leaving each of
them out of the others. Q grows as long as the probes that this saves cost more than the directions.

The basis depends only on probes that are not used again: the rest is sampled with new ones, so that
the estimate is unbiased and its samples are independent.

References: Meyer, Musco, Musco & Woodruff 2021, doi:10.1137/1.9781611976496.16 (Hutch++); Persson,
Cortinovis & Kressner 2022, doi:10.1137/21M1447623 (its adaptive form, with another rule).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hesse.errors import Status
from hesse.estimators.estimate import Estimate, RunningMean
from hesse.estimators.estimator_run import EstimatorRun, RunningEstimate
from hesse.estimators.orthonormal import extend
from hesse.estimators.probes import products, signs
from hesse.estimators.tolerance import FIRST_CHECK, Tolerance
from hesse.estimators.vector_budget import raise_too_small

_WIDTH = 10  # directions that are added at a time
_PROJECTED = 8  # probes that are projected together, at the price of one: the basis is read once
_MAX_FIT = 1 << 30


@dataclass
class DeflationState(RunningEstimate):
    """The samples of the rest, the basis, and the first ten samples, which are of A itself."""

    basis: list[Tensor] = field(default_factory=list)
    """Blocks of rows."""
    pilot: RunningMean = field(default_factory=RunningMean)
    left: float = 0.0
    """Mean square of a column of (I - QQ')A Z."""
    gain: float = 0.0
    """The fraction of it that the last ten directions have removed."""
    growing: bool = True

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The estimate; that of the pilot before the rest has been sampled."""
        if self.samples.count or self.exact is not None:
            return super().estimate(status)
        return RunningEstimate(self.generator, self.pilot, 0.0, self.products).estimate(status)


class Deflation(ABC):
    """Deflation for one quantity, such as the trace.

    Args:
        run: what it works with.
        always: deflate even where plain probes would take fewer products.
    """

    variance_factor: float
    """The variance of a sample of the rest over |(I - QQ')A|_F^2."""

    def __init__(self, run: EstimatorRun[Tolerance], always: bool) -> None:
        self.run, self.A, self.space, self.always = run, run.A, run.A.domain, always
        self.state = DeflationState(run.generator)
        self.width = _WIDTH
        if always:
            self.width = min(_WIDTH, int(run.limits.max_products // 3), self._max_directions(0))
            if self.width < 1:
                purpose = "method='hutch++' with one direction"
                alternative = "take method='hutchinson', which needs two vectors"
                raise_too_small(self.A, 4, run.max_vectors, purpose, alternative)

    @property
    def size(self) -> int:
        """The number of directions of the basis."""
        return sum(map(len, self.state.basis))

    @abstractmethod
    def plain_samples(self, probes: Tensor, images: Tensor) -> list[Any]:
        """Samples for A itself, from z and A z."""

    @abstractmethod
    def captured(self, basis: Tensor) -> Any:
        """The part of the quantity on these directions."""

    @abstractmethod
    def rest_samples(self, probes: Tensor) -> list[Any]:
        """Samples of the part outside of the basis: one product each."""

    def estimate(self) -> Estimate:
        """Build the basis, then sample the rest."""
        return self.run.sample(self.state, self._step)

    def _step(self) -> bool:
        state = self.state
        if state.growing:
            return self._grow()
        together = min(_PROJECTED, max(1, self._max_directions(self.size)))
        k = self.run.next_samples(state, least=together if state.basis else 1)
        state.add(self.rest_samples(signs(self.space, k, state.generator)), k)
        return True

    def _grow(self) -> bool:
        """Take ten products A Z, and add them to Q if that saves products."""
        state, k = self.state, min(self.width, self.run.room(self.state))
        probes = signs(self.space, k, state.generator)
        images = products(self.A, probes, self.run.block_size)
        first, variance = not state.basis, 0.0
        if first:
            samples = self.plain_samples(probes, images)
            for sample in samples:
                state.pilot.add(sample)
            variance = self._variance(samples)
            del samples
        state.products += k
        found, R = extend(self.space, state.basis, images, state.generator)
        outside = R[self.size :]
        left, after = float((outside**2).sum()) / k, _mean_square_left_out(outside)
        if not first:
            variance = self.variance_factor * left
        if self._takes_exact(variance, after):
            self.run.is_exact_due = True
        elif self._saves_products(first, variance, after):
            self._deflate(found, left, after)
        else:
            state.growing = False
            if first:
                state.samples = state.pilot
        return True

    def _variance(self, samples: list[Any]) -> float:
        """The variance of the pilot's samples; of vectors, the sum over the entries."""
        norm, mean = self.run.criterion.norm, self.state.pilot.mean
        squares = sum(norm(sample - mean) ** 2 for sample in samples)
        return squares / (len(samples) - 1) if len(samples) > 1 else 0.0

    def _deflate(self, found: Tensor, left: float, after: float) -> None:
        """Add the new directions to the basis."""
        state = self.state
        state.known = state.known + self.captured(found)
        state.products += len(found)
        state.basis.append(found)
        state.left = after
        state.gain = 1 - after / left if left > 0.0 else 0.0
        state.growing = self._keeps_growing()

    def _takes_exact(self, variance: float, after: float) -> bool:
        """Whether neither plain probes nor deflated ones would take fewer than n products."""
        room = self.run.room(self.state)
        plain, deflated = (
            max(FIRST_CHECK, self._needed_probes(value, room, variance))
            for value in (variance, self.variance_factor * after)
        )
        return self.run.takes_exact(min(plain, self.width + deflated, room), self.state.products)

    def _saves_products(self, first: bool, variance: float, after: float) -> bool:
        """Whether the directions just found save more products than they cost."""
        k, room = self.width, self.run.room(self.state)
        if room < k or (not self.always and self._max_directions(0) < k):
            return False
        if first and self.always:
            return True
        without = self._needed_probes(variance, room, variance)
        deflated = self._needed_probes(self.variance_factor * after, room, variance)
        return k + max(FIRST_CHECK, deflated) < max(FIRST_CHECK, without) - (k if first else 0)

    def _keeps_growing(self) -> bool:
        """Whether ten more directions would save products if they remove as large a fraction."""
        state, k = self.state, self.width
        room = self.run.room(state)
        if state.products + 2 * k > 2 * self.run.limits.max_products / 3:
            return False
        if self._max_directions(self.size) < k or self.size + k > self.space.n:
            return False
        variance = self.variance_factor * state.left
        return state.gain * self._needed_probes(variance, room, variance) > 2 * k

    def _needed_probes(self, variance: float, room: int, reference: float) -> float:
        """Probes that the tolerance needs at this variance.

        Without a tolerance, as many as there is room for at the variance `reference`.
        """
        tolerance = self.run.criterion.at(self.state.pilot.mean)
        admissible = max(tolerance**2, reference / max(room, 1))
        return variance / admissible if admissible > 0.0 else 0.0

    def _max_directions(self, size: int) -> int:
        """How many directions more than `size` fit into the memory budget."""
        # Beside the basis: a probe each, its product, the product of that, and one vector more.
        return min((self.run.max_vectors - size) // 4, _MAX_FIT)


def _mean_square_left_out(R: Tensor) -> float:
    """Mean square of the part of a column of R outside the span of the others."""
    eye = torch.eye(len(R), dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(R, eye, upper=True)
    return float((1 / (inverse**2).sum(dim=1)).mean())
