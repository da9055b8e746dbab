# SPDX-License-Identifier: Apache-2.0
"""Sample until the standard error meets a target: the one loop of all estimators.

A rule that looks at the standard error after every sample stops too early: it waits for a chance
underestimate. The target is therefore checked at few sample sizes, 16, 24, 36, ..., each half as
large again as the last. For normal samples and Student's interval that keeps the coverage above
94% whatever the target; `quantile_of` widens the interval for samples that are not normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from hesse.checkpoint import Checkpoint, FilePath, generator_for
from hesse.errors import ArgumentError, Status, check_not_empty, check_tolerances
from hesse.estimators.arguments import EXACT, Arguments, block_size_of, vectors_in
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of
from hesse.operators.algebra import LinearOperator
from hesse.progress import Run
from hesse.progress import State as Shown

FIRST_CHECK = 16


def next_check(count: int, first: int = FIRST_CHECK) -> int:
    """The smallest of the sample sizes at which a target is checked that is above `count`.

    >>> next_check(0), next_check(16), next_check(40)
    (16, 24, 54)
    """
    check = first
    while check <= count:
        check = math.ceil(1.5 * check)
    return check


def is_check(count: int, first: int = FIRST_CHECK) -> bool:
    """Whether a target is checked at this sample size."""
    return count > 0 and next_check(count - 1, first) == count


class Goal(Protocol):
    """When a result is good enough."""

    def met(self, result: Any, /) -> bool:
        """Whether this one is."""
        ...


@dataclass(frozen=True)
class Target:
    """Standard error at most max(rtol |value|, atol); of vectors, their norms."""

    rtol: float
    atol: float

    def tolerance(self, value: Any) -> float:
        """What the standard error may be at this value."""
        return max(self.rtol * _size(value), self.atol)

    def met(self, estimate: Estimate) -> bool:
        """Whether the estimate is good enough."""
        return _size(estimate.standard_error) <= self.tolerance(estimate.value)

    def least_samples(self, max_products: int) -> int:
        """So many samples are sure to be taken."""
        return FIRST_CHECK if max(self.rtol, self.atol) > 0.0 else max_products


def _size(value: Any) -> float:
    if not isinstance(value, Tensor):
        return abs(value)
    return float(torch.linalg.vector_norm(value, dtype=torch.float64))


AnyGoal = TypeVar("AnyGoal", bound=Goal)
Result = TypeVar("Result", bound=Shown)
Result_co = TypeVar("Result_co", bound=Shown, covariant=True)


class State(Protocol[Result_co]):
    """A run of an estimator at a moment, in a form that a checkpoint saves."""

    products: int

    @property
    def ready(self) -> bool:
        """Whether the target is checked now."""
        ...

    def estimate(self, status: Status = Status.UNFINISHED) -> Result_co | None:
        """The result so far, if there is one."""
        ...


@dataclass
class Stream:
    """A mean of independent samples, beside a part that is known."""

    generator: torch.Generator | None
    samples: RunningMean = field(default_factory=RunningMean)
    known: Any = 0.0
    products: int = 0

    @property
    def ready(self) -> bool:
        """Whether the target is checked now."""
        return is_check(self.samples.count)

    def add(self, samples: list[Any], products: int) -> None:
        """Take in samples, and what they cost."""
        for sample in samples:
            self.samples.add(sample)
        self.products += products

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The known part and the mean."""
        if self.samples.count == 0:
            return None
        return Estimate(
            self.known + self.samples.mean,
            self.samples.standard_error,
            self.products,
            status,
            quantile_of(self.samples.count),
        )


@dataclass
class Sampler(Generic[AnyGoal]):
    """What an estimator works with: operator, target, limits, generator, block, and checkpoint."""

    A: LinearOperator
    call: str
    target: AnyGoal
    run: Run
    generator: torch.Generator | None
    block_size: int
    vectors: int
    """How many of them fit into the memory budget."""
    file: FilePath
    """Of the checkpoint."""
    question: Mapping[str, Any]
    """What must be the same for a run to go on from it."""

    @staticmethod
    def of(
        A: LinearOperator,
        call: str,
        name: str,
        target: AnyGoal,
        arguments: Arguments,
        *,
        total: int | None = None,
        **question: Any,
    ) -> Sampler[AnyGoal]:
        """The sampler of the estimator `name`; `total` as of `Run`, `question` of `Checkpoint`."""
        check_not_empty(call, A.shape)
        vectors = vectors_in(A, arguments.memory_budget, call)
        block = min(block_size_of(A, arguments.block_size, call), vectors // 2)
        if isinstance(target, Target):
            check_tolerances(call, rtol=target.rtol, atol=target.atol)
        return Sampler(
            A,
            call,
            target,
            run=arguments.run(name, total),
            generator=generator_for(arguments.generator, arguments.checkpoint),
            block_size=block,
            vectors=vectors,
            file=arguments.checkpoint,
            question={"call": name, **question, "block_size": block},
        )

    @property
    def is_small(self) -> bool:
        """Whether the whole matrix costs so little that nothing is sampled."""
        n = self.A.shape[1]
        # Unit vectors, their products, and these in float64.
        return n <= min(EXACT, self.run.max_products) and 4 * n <= self.vectors

    def room(self, state: State, cost: int = 1) -> int:
        """How many more samples of this cost the limit of products allows; raises for no first."""
        if state.products == 0:
            self.run.require(cost, self.call, "a first sample takes")
        return int(min(self.run.left(state.products), 1 << 62)) // cost

    def block(self, state: Stream, cost: int = 1, least: int = 1) -> int:
        """How many samples to draw now: a block, up to the next check and the limit."""
        count, size = state.samples.count, max(self.block_size, least)
        return min(size, next_check(count) - count, self.room(state, cost))

    def sample(self, state: State[Result], step: Callable[[], bool]) -> Result:
        """Take steps until the target is met or the run ends; a step is False if it has no room."""
        checkpoint = Checkpoint(self.file, self.A, **self.question)
        checkpoint.resume(state)
        with self.run:
            result = state.estimate()
            while self._goes_on(state, result):
                if not step():
                    self.run.status = Status.MAX_PRODUCTS
                    break
                checkpoint.save(state)
                result = state.estimate()
                if result is not None:
                    self.run.after_step(result)
        if self.run.status is not Status.INTERRUPTED:  # which may be in the middle of a step
            checkpoint.save(state, now=True)
        return self._result(state)

    def _goes_on(self, state: State[Result], result: Result | None) -> bool:
        if self.run.status is Status.STOPPED:
            return False
        if state.ready and self._met(result):
            self.run.status = Status.CONVERGED
            return False
        return result is None or self.run.goes_on(state)

    def _met(self, result: Any) -> bool:
        return result is not None and self.target.met(result)

    def _result(self, state: State[Result]) -> Result:
        if self.run.status is Status.MAX_PRODUCTS and self._met(state.estimate()):
            self.run.status = Status.CONVERGED
        result = state.estimate(self.run.status)
        if result is not None:
            return result
        if self.run.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        raise ArgumentError(
            self.call,
            expected="max_products and max_seconds that allow a first sample",
            got=f"an end before it: {self.run.status.value}",
            remedy="Raise them.",
        )
