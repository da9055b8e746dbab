# SPDX-License-Identifier: Apache-2.0
"""The one loop of the optimisers: step until the gradient is small or nothing more is gained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hesse.errors import Status
from hesse.optimize.armijo import rounding
from hesse.optimize.point import Objective, Point
from hesse.optimize.proposal import Descent, Search, take_step

_PATIENCE = 12  # fruitless steps in a row before giving up: twelve quarterings of a trust radius


@dataclass
class Iteration:
    """The state after a step: what a callback sees. `point` is the best so far."""

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
    """The states of a minimisation, the starting point first; the last one has the final status."""
    fruitless = number = 0
    best = point
    while True:
        yield (
            state := Iteration(
                number, best, _status(best, fruitless, number, tolerance, max_iterations)
            )
        )
        if state.status is not Status.UNFINISHED:
            return
        point, _ = take_step(objective, point, descent, search)
        number += 1
        if _is_better(point, best):
            best, fruitless = point, 0
        else:
            fruitless += 1


def _status(best: Point, fruitless: int, number: int, tolerance: float, limit: int) -> Status:
    if best.gradient_norm <= tolerance:
        return Status.CONVERGED
    if fruitless >= _PATIENCE:
        return Status.STAGNATED
    return Status.MAX_ITERATIONS if number >= limit else Status.UNFINISHED


def _is_better(point: Point, best: Point) -> bool:
    """Lower beyond the rounding of f, or within it and flatter."""
    if point is best:
        return False
    noise = rounding(best)
    if point.value < best.value - noise:
        return True
    return point.value <= best.value + noise and point.gradient_norm < best.gradient_norm
