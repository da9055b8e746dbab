"""The best rate of a rival: each is tried for a share of the time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.training.run import Clock, train
from benchmarks.training.task import Rival, Task

SHARE = 0.15
"""Of the seconds of a run, for each rate."""


@dataclass(frozen=True)
class Tunable:
    """A rival of a rate, and the rates to try."""

    of: Callable[[float], Rival]
    rates: Sequence[float]

    def best(self, task: Task, seconds: float, folder: Path, clock: Clock) -> Rival:
        """That of the rate whose error after a share of the seconds is the least."""
        errors: dict[float, float] = {}
        for rate in self.rates:
            trial = self._named(rate, "trial of rate")
            error = train(task, trial, 0, SHARE * seconds, folder, clock=clock).rows[-1][3]
            errors[rate] = math.inf if math.isnan(error) else error
        return self._named(min(errors, key=lambda rate: errors[rate]), "rate")

    def _named(self, rate: float, word: str) -> Rival:
        rival = self.of(rate)
        return replace(rival, name=f"{rival.name}, {word} {rate:g}")


@dataclass(frozen=True)
class Untuned:
    """A rival that has no rate."""

    rival: Rival

    def best(self, task: Task, seconds: float, folder: Path, clock: Clock) -> Rival:
        """The rival itself."""
        del task, seconds, folder, clock
        return self.rival
