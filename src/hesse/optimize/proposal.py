# SPDX-License-Identifier: Apache-2.0
"""What passes between a descent and a search, and what a loop asks of the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from hesse.errors import Status
from hesse.optimize.point import Objective, Point


@dataclass
class Candidate:
    """A step p and the change g'p + p'Bp/2 that the undamped quadratic model predicts for it."""

    step: Tensor
    change: float | Callable[[], float]
    """The predicted change, or what computes it, where that takes a product."""
    length: float | None = None
    """In the norm that the search measures steps with; None for the Euclidean one."""

    @cached_property
    def predicted(self) -> float:
        """The predicted change."""
        return self.change() if callable(self.change) else self.change


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


@dataclass
class NoState:
    """The state of a search or a descent whose next step depends on the point alone."""


class LoopDescent(ABC):
    """The base of the descents of `minimize`, which a checkpoint saves."""

    gradient_tolerance: float = 0.0
    """That of the minimisation: no step needs to be more accurate."""
    along_gradient: bool = False
    """Whether the next proposal is along the gradient: the last was lower at no length."""
    state: Any
    """A dataclass of all that the next proposal depends on, beside the point."""

    @abstractmethod
    def propose(self, point: Point, scalar: float) -> Proposal:
        """A step from `point`."""

    def first_curvature(self, point: Point) -> float:
        """d'Hd along the (preconditioned) gradient, in whose norm |d| = 1. One product."""
        unit = 1.0 / (point.gradient_norm or 1.0)
        return point.curvature._curvature(unit * point.projected_gradient)

    def rejected(self) -> None:  # noqa: B027
        """The search rejected the last proposal."""

    def moved(self) -> None:  # noqa: B027
        """The next point is no neighbour of the last one."""


class LoopSearch(ABC):
    """The base of the searches of `minimize`, which a checkpoint saves."""

    state: Any
    """A dataclass of all that the search remembers."""

    @property
    @abstractmethod
    def scalar(self) -> float:
        """A trust radius or a weight; an infinite radius if there is none."""

    @abstractmethod
    def judge(self, objective: Objective, point: Point, proposal: Proposal) -> Point | None:
        """The accepted point, or None."""

    def begin(self, point: Point, descent: LoopDescent) -> None:  # noqa: B027
        """Choose the scalar for the first proposal, from this point."""

    def moved(self, point: Point, length: float, descent: LoopDescent) -> None:  # noqa: B027
        """The next proposal is from a point so far away, where f is lower."""

    def is_short(self, length: float) -> bool:
        """Whether no step is longer than this, so that failures show that nothing is lower."""
        return True


def take_step(
    objective: Objective,
    point: Point,
    descent: Descent | LoopDescent,
    search: Search | LoopSearch,
) -> tuple[Point, Proposal]:
    """One iteration of every method: propose, judge, move. A rejection returns `point` itself."""
    proposal = descent.propose(point, search.scalar)
    accepted = search.judge(objective, point, proposal)
    if accepted is None:
        descent.rejected()
    return accepted or point, proposal
