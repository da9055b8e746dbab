"""A subject: one way, of one library, to take one product."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.case import BLOCK, Case


class Unavailable(Exception):
    """The reason why a subject does not take part: it is not installed, or not of this problem."""


class Run(Protocol):
    """A product that is ready to be taken, again and again."""

    def seconds(self) -> float:
        """Take the product and say how long it took."""
        ...

    def result(self) -> Tensor:
        """The last product, a flat vector or shape (n, 8)."""
        ...


class InProcess:
    """A product in this process: `call` takes it, `flatten` makes a flat vector of it, untimed."""

    def __init__(self, call: Callable[[], Any], flatten: Callable[[Any], Tensor]) -> None:
        self._call, self._flatten = call, flatten
        self._last: Any = None

    def seconds(self) -> float:
        self._last = None  # what it held may be used again by the next product
        collecting = gc.isenabled()
        gc.disable()
        start = time.perf_counter()
        self._last = self._call()
        seconds = time.perf_counter() - start
        if collecting:
            gc.enable()
        return seconds

    def result(self) -> Tensor:
        return self._flatten(self._last).detach()


def always(case: Case) -> None:
    """The check of a subject that takes part in everything."""


@dataclass(frozen=True)
class Subject:
    """How to prepare a product at the point of a case.

    Attributes:
        quantity: "gradient", "hessian", "ggn", "fisher", "empirical", "jacobian" (J v) or "adjoint"
            (J'u).
        prepare: everything that is done once at a point; what it costs is part of the first call.
        check: raises `Unavailable`; untimed.
        vectors: how many are multiplied at a time.
        compiled: whether preparing it takes the compiler of torch.
        adaptive: how it takes a product depends on how many were taken before, so that it has no
            place in a comparison of medians; `totals` is for it.
    """

    library: str
    quantity: str
    method: str
    prepare: Callable[[Case], Run]
    check: Callable[[Case], None] = always
    vectors: int = 1
    compiled: bool = False
    adaptive: bool = False

    @property
    def name(self) -> str:
        """`library/quantity/method`, and `/8` for a block."""
        block = f"/{self.vectors}" if self.vectors > 1 else ""
        return f"{self.library}/{self.quantity}/{self.method}{block}"


def flat(result: Tensor) -> Tensor:
    """The result is flat already."""
    return result


def flat_leaves(leaves: Iterable[Tensor]) -> Tensor:
    """(n,) from one tensor a parameter."""
    return torch.cat([leaf.reshape(-1) for leaf in leaves])


def flat_leading(leaves: Iterable[Tensor]) -> Tensor:
    """(n, 8) from tensors with the vectors along the first axis."""
    return torch.cat([leaf.reshape(BLOCK, -1) for leaf in leaves], dim=1).T


def flat_trailing(leaves: Iterable[Tensor]) -> Tensor:
    """(n, 8) from tensors with the vectors along the last axis."""
    return torch.cat([leaf.reshape(-1, BLOCK) for leaf in leaves])


def needs_parts(case: Case) -> None:
    """Raise unless the problem is a model with a loss."""
    if case.problem.parts is None:
        raise Unavailable("the problem is no model with a loss")
