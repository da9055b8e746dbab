# SPDX-License-Identifier: Apache-2.0
r"""Deflation: what a few directions Q of an operator hold is taken exactly, the rest is sampled.

Q is an orthonormal basis of A Z for random signs Z, ten at a time. Each ten products A Z tell,
before they are used, how much is left outside Q: (I - QQ') A Z has the mean square |(I - QQ')A|_F^2
a column. How much would be left with these ten as well is told by leaving each out of the others.
Q grows as long as what that saves in probes is more than what it costs.

The basis depends on the probes only through products that are not used again: the probes of the
rest are fresh, which makes the estimate unbiased and its samples independent.

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
from hesse.estimators.arguments import HUTCHINSON, too_small
from hesse.estimators.estimate import Estimate, RunningMean
from hesse.estimators.orthonormal import extend
from hesse.estimators.probes import products, signs
from hesse.estimators.sampling import FIRST_CHECK, Sampler, Stream, Target

PILOT = 10
_TOGETHER = 8


@dataclass
class Deflated(Stream):
    """The stream of the rest, the basis, and what the first ten products said of A itself."""

    basis: list[Tensor] = field(default_factory=list)
    """Blocks of rows."""
    pilot: RunningMean = field(default_factory=RunningMean)
    left: float = 0.0
    """Mean square of a column of (I - QQ')A Z."""
    gain: float = 0.0
    """The share of it that the last ten directions have removed."""
    growing: bool = True

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The estimate of the pilot as long as the rest has not been sampled."""
        if self.samples.count:
            return super().estimate(status)
        return Stream(self.generator, self.pilot, 0.0, self.products).estimate(status)


class Deflation(ABC):
    """What is estimated with deflation. `always`: deflate even if plain probes would do."""

    spread: float
    """The variance of a sample of the rest, in units of |(I - QQ')A|_F^2."""

    def __init__(self, sampler: Sampler[Target], always: bool) -> None:
        self.sampler, self.A, self.always = sampler, sampler.A, always
        self.state = Deflated(sampler.generator)
        self.width = PILOT
        if always:
            self.width = min(PILOT, int(sampler.run.max_products // 3), self._fits(0))
            if self.width < 1:
                what = "method='hutch++' with one direction"
                too_small(self.A, 4, sampler.vectors, what, sampler.call, HUTCHINSON)

    @property
    def size(self) -> int:
        """How many directions the basis has."""
        return sum(map(len, self.state.basis))

    @abstractmethod
    def plain(self, probes: Tensor, images: Tensor) -> list[Any]:
        """The samples of A itself, from z and A z."""

    @abstractmethod
    def captured(self, basis: Tensor) -> Any:
        """What these directions hold."""

    @abstractmethod
    def rest(self, probes: Tensor) -> list[Any]:
        """The samples of what is outside the basis: one product each."""

    def estimate(self) -> Estimate:
        """Build the basis, then sample the rest."""
        return self.sampler.sample(self.state, self._step)

    def _step(self) -> bool:
        state = self.state
        if state.growing:
            return self._grow()
        # Together they are projected at the price of one: the basis is read once.
        together = min(_TOGETHER, max(1, self._fits(self.size)))
        k = self.sampler.block(state, least=together if state.basis else 1)
        state.add(self.rest(signs(self.A, k, state.generator)), k)
        return True

    def _grow(self) -> bool:
        """Ten products A Z; ten more, and Q grows, if that pays."""
        state, A, k = self.state, self.A, min(self.width, self.sampler.room(self.state))
        probes = signs(A, k, state.generator)
        images = products(A, probes, self.sampler.block_size, self.sampler.call)
        first = not state.basis
        if first:
            for sample in self.plain(probes, images):
                state.pilot.add(sample)
        state.products += k
        found, R = extend(A, state.basis, images, state.generator)
        outside = R[self.size :]
        left, after = float((outside**2).sum()) / k, _left_out(outside)
        if self._pays(first, left, after):
            self._deflate(found, left, after)
        else:
            state.growing = False
            if first:
                state.samples = state.pilot
        return True

    def _deflate(self, found: Tensor, left: float, after: float) -> None:
        """Take the new directions into the basis."""
        state = self.state
        state.known = state.known + self.captured(found)
        state.products += len(found)
        state.basis.append(found)
        state.left = after
        state.gain = 1 - after / left if left > 0.0 else 0.0
        state.growing = self._goes_on()

    def _pays(self, first: bool, left: float, after: float) -> bool:
        """Whether the directions just found save more products than they cost."""
        k, room = self.width, self.sampler.room(self.state)
        if room < k or (not self.always and self._fits(0) < k):
            return False
        if first and self.always:
            return True
        pilot = self.state.pilot
        now = _size(pilot.squares) / (pilot.count - 1) if first else self.spread * left
        without = self._probes(now, room, now)
        with_them = self._probes(self.spread * after, room, now)
        return k + max(FIRST_CHECK, with_them) < max(FIRST_CHECK, without) - (k if first else 0)

    def _goes_on(self) -> bool:
        """Whether further directions would pay if they remove as large a share again."""
        state, k = self.state, self.width
        room = self.sampler.room(state)
        most = 2 * self.sampler.run.max_products / 3
        if state.products + 2 * k > most or self._fits(self.size) < k:
            return False
        if self.size + k > self.A.shape[1]:
            return False
        variance = self.spread * state.left
        return state.gain * self._probes(variance, room, variance) > 2 * k

    def _probes(self, variance: float, room: int, reference: float) -> float:
        """Probes that the target needs at this variance; of no target, the share of the room."""
        tolerance = self.sampler.target.tolerance(self.state.pilot.mean)
        within = max(tolerance**2, reference / max(room, 1))
        return variance / within if within > 0.0 else 0.0

    def _fits(self, size: int) -> int:
        """How many directions the memory has room for beside `size`."""
        # Beside the basis a probe each, what A makes of it, the image of that, and their product.
        return min((self.sampler.vectors - size) // 4, 1 << 30)


def _left_out(R: Tensor) -> float:
    """Mean square of a column of R outside the span of the others."""
    eye = torch.eye(len(R), dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(R, eye, upper=True)
    return float((1 / (inverse**2).sum(dim=1)).mean())


def _size(value: Any) -> float:
    return float(value.sum()) if isinstance(value, Tensor) else value
