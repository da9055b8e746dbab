# SPDX-License-Identifier: Apache-2.0
"""The sampling loop of all estimators: sample until the criterion is met or the run ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch

from hesse.checkpoint import Checkpoint, generator_for
from hesse.errors import ArgumentError, Status, check_not_empty
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of
from hesse.estimators.exact import (
    MAX_DENSE,
    Columns,
    Exact,
    ExactValue,
    columns_of,
    exact_estimate,
)
from hesse.estimators.probes import products
from hesse.estimators.tolerance import Criterion, is_check, next_check
from hesse.estimators.vector_budget import Budget, choose_block_size, vectors_in
from hesse.operators.algebra import LinearOperator
from hesse.progress import Run, State
from hesse.ranks import share_run_of
from hesse.vectors.random import check_generator

DENSE = 10
"""Up to this dimension the estimators take all products with unit vectors, and are exact."""

_UNLIMITED = 1 << 62


class _Stopped(Exception):
    """The run was stopped before all columns were taken."""


CriterionT = TypeVar("CriterionT", bound=Criterion)
Result = TypeVar("Result", bound=State)
Result_co = TypeVar("Result_co", bound=State, covariant=True)


class EstimatorState(Protocol[Result_co]):
    """The state of an estimator between two steps, as a checkpoint saves it."""

    products: int
    exact: Any

    @property
    def is_due(self) -> bool:
        """Whether the criterion is checked now."""
        ...

    def estimate(self, status: Status = Status.UNFINISHED) -> Result_co | None:
        """The result so far, if there is one."""
        ...


@dataclass
class RunningEstimate:
    """A mean of independent samples, plus a part that is known exactly."""

    generator: torch.Generator | None
    samples: RunningMean = field(default_factory=RunningMean)
    known: Any = 0.0
    products: int = 0
    exact: ExactValue | None = None
    """The answer, once it is known without sampling."""

    @property
    def is_due(self) -> bool:
        """Whether the criterion is checked now."""
        return is_check(self.samples.count)

    def add(self, samples: list[Any], products: int) -> None:
        """Add samples, and the number of products that they took."""
        for sample in samples:
            self.samples.add(sample)
        self.products += products

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        """The exact answer, or the known part plus the mean."""
        if self.exact is not None:
            return exact_estimate(ExactValue(*self.exact), self.products, status)
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
class EstimatorRun(Generic[CriterionT]):
    """What a method works with: operator, criterion, limits, generator, block size and budget."""

    A: LinearOperator
    limits: Run
    criterion: CriterionT
    generator: torch.Generator | None
    block_size: int
    max_vectors: int
    """The number of vectors that fit into the memory budget."""
    run_key: Mapping[str, Any]
    """What must be equal for a run to resume from the checkpoint."""
    checkpoint: Checkpoint | None = field(default=None, init=False)
    exact: Exact | None = None
    """How all columns give the answer; None if it is to be sampled."""
    needs_matrix: bool = False
    """Whether that takes all columns at once."""
    is_exact_due: bool = False
    """Whether a step found that sampling would take no fewer than n products."""

    @staticmethod
    def of(
        A: LinearOperator,
        limits: Run,
        criterion: CriterionT,
        *,
        generator: torch.Generator | None,
        block_size: int | None,
        memory_budget: Budget,
        exact: Exact | None = None,
        needs_matrix: bool = False,
        **run_key: Any,
    ) -> EstimatorRun[CriterionT]:
        """A run with the arguments of a public function, which are checked here."""
        check_not_empty(A.shape)
        check_generator(generator)
        share_run_of(limits, A.domain.ranks)
        vectors = vectors_in(A, memory_budget)
        block = min(choose_block_size(A, block_size), vectors // 2)
        return EstimatorRun(
            A,
            limits,
            criterion,
            generator=generator_for(generator, limits.checkpoint, A.domain),
            block_size=block,
            max_vectors=vectors,
            run_key={"call": limits.title, **run_key, "block_size": block},
            exact=exact,
            needs_matrix=needs_matrix,
        )

    def takes_exact(self, remaining: float, taken: int = 0) -> bool:
        """Whether sampling would take n products or more in all, `remaining` and those `taken`.

        The latter are lost to the exact way, so that they count up to a quarter of n.
        """
        n = self.A.domain.n
        if self.limits.left(taken) < n:
            return False
        remaining += min(taken, n // 4)
        fits = n <= MAX_DENSE and 4 * n <= self.max_vectors
        return self.exact is not None and n <= remaining and (fits or not self.needs_matrix)

    def starts_exact(self, least: int) -> bool:
        """Whether to sample nothing, as that takes `least` products in any case."""
        return self.limits.is_unobserved and self.takes_exact(least)

    def of_all_columns(self, exact: Exact) -> Estimate:
        """The exact answer, from all columns at once."""
        found = None
        with self.limits:
            found = exact(columns_of(self.A))
        if found is None:
            raise KeyboardInterrupt
        return exact_estimate(found, self.A.domain.n)

    @property
    def is_small(self) -> bool:
        """Whether the whole matrix is affordable, so that nothing need be sampled."""
        n = self.A.domain.n
        # Unit vectors, their products, and these in float64.
        return n <= min(DENSE, self.limits.max_products) and 4 * n <= self.max_vectors

    def room(self, state: EstimatorState, cost: int = 1) -> int:
        """How many more samples of this cost the limit of products allows; the first must fit."""
        if state.products == 0:
            self.limits.require(cost, "a first sample takes")
        return int(min(self.limits.left(state.products), _UNLIMITED)) // cost

    def next_samples(self, state: RunningEstimate, cost: int = 1, least: int = 1) -> int:
        """How many samples to draw now: a block, up to the next check and the limit."""
        count, size = state.samples.count, max(self.block_size, least)
        return min(size, next_check(count) - count, self.room(state, cost))

    def goes_on_within(self, state: EstimatorState) -> bool:
        """Whether a step of many products goes on; saves the state, which is whole now."""
        if self.checkpoint is not None:
            self.checkpoint.save(state)
        return self.limits.goes_on(state)

    def sample(
        self,
        state: EstimatorState[Result],
        step: Callable[[], bool],
        *,
        is_always_whole: bool = False,
    ) -> Result:
        """Repeat `step` until the criterion is met, the run ends, or a step returns False.

        `is_always_whole`: Ctrl-C in a step leaves a state from which the run can continue.
        """
        checkpoint = Checkpoint(self.limits.checkpoint, self.A, **self.run_key)
        self.checkpoint = checkpoint
        checkpoint.resume(state)
        with self.limits as limits:
            result = state.estimate()
            while self._goes_on(state, result):
                if self.is_exact_due or self._is_exact_cheaper(state, result):
                    self._take_all_columns(state)
                elif not step():
                    limits.status = Status.MAX_PRODUCTS
                    break
                checkpoint.save(state)
                result = state.estimate()
                if result is not None:
                    limits.after_step(result)
        # After Ctrl-C it may be in the middle of a step.
        if is_always_whole or self.limits.status is not Status.INTERRUPTED:
            checkpoint.save(state, now=True)
        return self._result(state)

    def _is_exact_cheaper(self, state: EstimatorState[Result], result: Any) -> bool:
        """Whether the samples that the tolerance needs, judged by their spread, take n products."""
        if self.exact is None or result is None or not state.is_due:
            return False
        remaining = min(self.criterion.excess(result) * state.products, self.room(state))
        return self.takes_exact(remaining, state.products)

    def _take_all_columns(self, state: EstimatorState) -> None:
        """The exact answer, unless the run is stopped on the way."""
        assert self.exact is not None
        with suppress(_Stopped):
            state.exact = self.exact(self._columns(state))

    def _columns(self, state: EstimatorState) -> Columns:
        space = self.A.domain
        for first in range(0, space.n, self.block_size):
            units = space.units(first, min(self.block_size, space.n - first))
            images = space.whole(products(self.A, units, self.block_size))
            state.products += len(images)
            yield first, images
            so_far = state.estimate()
            last = first + len(images) == space.n
            if not last and so_far is not None and not self.limits.after_step(so_far):
                raise _Stopped

    def _goes_on(self, state: EstimatorState[Result], result: Result | None) -> bool:
        if state.exact is not None:
            self.limits.status = Status.CONVERGED
            return False
        if self.limits.status is Status.STOPPED:
            return False
        if state.is_due and self._is_met(result):
            self.limits.status = Status.CONVERGED
            return False
        return result is None or self.limits.goes_on(state)

    def _is_met(self, result: Any) -> bool:
        return result is not None and self.criterion.is_met(result)

    def _result(self, state: EstimatorState[Result]) -> Result:
        if self.limits.status is Status.MAX_PRODUCTS and self._is_met(state.estimate()):
            self.limits.status = Status.CONVERGED
        result = state.estimate(self.limits.status)
        if result is not None:
            return result
        if self.limits.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        raise ArgumentError(
            expected="max_products and max_seconds that allow a first sample",
            got=f"an end before it: {self.limits.status.value}",
            remedy="Raise them.",
        )
