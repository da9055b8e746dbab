"""A job: one question, subjects that answer it, and the error of an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a subject returned, and the products that it took."""

    value: Any
    products: int


@dataclass(frozen=True, eq=False)
class Subject:
    """One way of one library; `run` starts from the model and a seed, with nothing prepared."""

    library: str
    method: str
    run: Callable[[int], Answer]

    @property
    def name(self) -> str:
        """`library method`."""
        return f"{self.library} {self.method}"


def _nothing(_seed: int) -> None: ...


@dataclass(frozen=True, eq=False)
class Job:
    """A question.

    Attributes:
        subjects: those who answer; the first is Hesse as the criteria take it.
        error: of a value, relative.
        target: an answer with a larger error takes no part in the criteria.
        note: how the subjects were set up.
        before: what is done before the round of a seed, untimed.
    """

    name: str
    title: str
    subjects: list[Subject]
    error: Callable[[Any], float]
    target: float
    note: str
    before: Callable[[int], object] = _nothing
