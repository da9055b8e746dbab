# SPDX-License-Identifier: Apache-2.0
"""Run the iterations of a minimisation or a fit until they end or a limit does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from hesse.errors import Status
from hesse.progress import Run, State
from hesse.ranks import Ranks


class _Iteration(State, Protocol):
    """What a loop yields: a `State` that knows whether it is the last one."""

    @property
    def status(self) -> Status: ...


class Loop(Protocol):
    """Iterations whose state can be saved."""

    def iterations(self) -> Iterator[_Iteration]:
        """The iterations; the last has the final status."""
        ...

    def save(self, *, now: bool = False) -> None:
        """Write the state."""
        ...


def run_to_end(loop: Loop, limits: Run, ranks: Ranks | None = None) -> Status:
    """Run a loop within its limits; how it ended.

    `ranks`: processes that agree after each iteration whether to go on, not within the next one.
    """
    status = Status.UNFINISHED
    with limits:
        for iteration in loop.iterations():
            status = iteration.status
            if status is Status.UNFINISHED and not _goes_on(limits, iteration, ranks):
                status = limits.status
                break
    if limits.status is Status.INTERRUPTED:
        status = limits.status
    loop.save(now=True)
    return status


def _goes_on(limits: Run, iteration: _Iteration, ranks: Ranks | None) -> bool:
    goes_on = limits.after_step(iteration)
    if ranks is None:
        return goes_on
    ranks.meet()
    return limits.goes_on(iteration)
