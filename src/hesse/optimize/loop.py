# SPDX-License-Identifier: Apache-2.0
"""The loop of every optimiser: step until the gradient is small or progress stops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hesse.errors import Status
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Descent, Search, take_step

# Steps without progress before stopping: a trust radius is then divided by 4 twelve times.
_MAX_FAILURES = 12


@dataclass
class Iteration:
    """The state after a step, as a callback sees it; `point` is the best so far."""

    number: int
    point: Point
    status: Status = Status.UNFINISHED

    @property
    def value(self) -> float:
        """f at the point."""
        return self.point.value

    @property
    def gradient_norm(self) -> float:
        """|grad f| at the point."""
        return self.point.gradient_norm


def iterate(
    objective: Objective,
    point: Point,
    descent: Descent,
    search: Search,
    *,
    tolerance: float,
    max_iterations: int,
) -> Iterator[Iteration]:
    """The states of a minimisation, first that of the start; the last has the final status."""
    failures = number = 0
    best = point
    while True:
        yield (
            state := Iteration(
                number, best, _status(best, failures, number, tolerance, max_iterations)
            )
        )
        if state.status is not Status.UNFINISHED:
            return
        point, _ = take_step(objective, point, descent, search)
        number += 1
        if _is_better(point, best):
            best, failures = point, 0
        else:
            failures += 1


def _status(best: Point, failures: int, number: int, tolerance: float, limit: int) -> Status:
    if best.gradient_norm <= tolerance:
        return Status.CONVERGED
    if failures >= _MAX_FAILURES:
        return Status.STAGNATED
    return Status.MAX_ITERATIONS if number >= limit else Status.UNFINISHED


def _is_better(point: Point, best: Point) -> bool:
    """Whether f is lower by more than rounding, or equal up to it with a smaller gradient."""
    if point is best:
        return False
    noise = best.rounding_error
    if point.value < best.value - noise:
        return True
    return point.value <= best.value + noise and point.gradient_norm < best.gradient_norm
