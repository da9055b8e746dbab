# SPDX-License-Identifier: Apache-2.0
"""What passes between a descent and a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from hesse.errors import Status
from hesse.optimize.point import Objective, Point


@dataclass
class Candidate:
    """A step p and the change g'p + p'Bp/2 that the undamped quadratic model predicts for it."""

    step: Tensor
    predicted: float


@dataclass
class Proposal:
    """A step, shorter alternatives, and how the inner solve ended."""

    best: Candidate
    shorter: list[Candidate] = field(default_factory=list)
    """Earlier iterates of the inner solve, the shortest first."""
    status: Status = Status.UNFINISHED
    on_boundary: bool = False
    """Whether the step was cut off at the trust radius."""
    at: Callable[[float], Candidate] | None = None
    """The step for another damping, where that takes no product."""
    least_damping: float = 0.0
    """The smallest damping for `at`, where there is negative curvature."""


class Descent(Protocol):
    """Computes a step from a point and the scalar of the search."""

    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`."""
        ...

    def rejected(self) -> None:
        """The search rejected the last proposal: drop the state that led to it."""
        ...


class Search(Protocol):
    """Accepts or rejects a step, and keeps the scalar for the next proposal."""

    scalar: float
    """A trust radius or a damping; an infinite radius if there is none."""

    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None."""
        ...


def take_step(
    objective: Objective, point: Point, descent: Descent, search: Search
) -> tuple[Point, Proposal]:
    """One iteration of every method: propose, judge, move. A rejection returns `point` itself."""
    proposal = descent.propose(point, search.scalar)
    accepted = search.judge(objective, point, proposal)
    if accepted is None:
        descent.rejected()
    return accepted or point, proposal
