# SPDX-License-Identifier: Apache-2.0
"""f(A) b for many vectors b: some at a time, in lock-step, as the memory budget allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.errors import Status, check_count, check_not_empty, check_tolerances
from hesse.estimators.function_column import FIRST_CHECK, FunctionColumn, FunctionState
from hesse.estimators.lockstep import step_together
from hesse.estimators.ritz_function import RitzFunction
from hesse.estimators.vector_budget import (
    Budget,
    choose_block_size,
    raise_too_small,
    vectors_in,
)
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.progress import Callback, Run
from hesse.vectors.rows import empty_rows, transposed


@dataclass(frozen=True)
class FunctionOptions:
    """The options of `matrix_function`."""

    rtol: float | None
    basis_size: int
    max_products: int | None
    max_seconds: float | None
    generator: torch.Generator | None
    callback: Callback | None
    progress: bool
    block_size: int | None
    memory_budget: Budget

    def limits(self) -> Run:
        """The limits of a column."""
        return Run(
            "f(A) b",
            max_products=self.max_products,
            max_seconds=self.max_seconds,
            callback=self.callback,
        )


@dataclass(frozen=True)
class Approximations:
    """f(A) b for every b, as rows, with the estimated errors, (k,)."""

    values: Tensor
    errors: Tensor
    products: int
    status: Status
    """Of the first column that has not converged."""


class FunctionColumns:
    """f(A) b for several b, of which so many advance together until the last of them has ended."""

    def __init__(self, f: RitzFunction, A: LinearOperator, options: FunctionOptions) -> None:
        check_symmetric(A)
        check_not_empty(A.shape)
        self.f, self.A, self.options = f, A, options
        self.steps = min(check_count("basis_size", options.basis_size, 1), A.domain.n)
        self.rtol = torch.finfo(A.dtype).eps ** (2 / 3) if options.rtol is None else options.rtol
        check_tolerances(rtol=self.rtol)
        self.together = self._columns_together()
        self.max_products = self.steps
        """Of a column."""
        if options.max_products is not None:
            limit = check_count("max_products", options.max_products, 1)
            self.max_products = min(self.steps, limit)

    def approximate(self, rows: Tensor) -> Approximations:
        """The approximations for every row b."""
        exact = self.f.of(self.A)
        if exact is not None:
            values = transposed(exact._matmat(rows.T))
            return Approximations(values, torch.zeros(len(rows)).double(), 0, Status.CONVERGED)
        self.A.announce(FIRST_CHECK * len(rows))
        total = self.max_products * len(rows)
        shown = Run("f(A) b", progress=self.options.progress, total=total)
        shown.share(self.A.domain.ranks)
        values = empty_rows(*rows.shape, dtype=rows.dtype, device=rows.device)
        errors = torch.full((len(rows),), math.inf, dtype=torch.float64)
        statuses: list[Status] = []
        while len(statuses) < len(rows) and shown.status is Status.UNFINISHED:
            group = slice(len(statuses), len(statuses) + self.together)
            statuses += self._fill(rows[group], values[group], errors[group], shown)
        values[len(statuses) :] = 0.0
        if shown.status is Status.INTERRUPTED and not bool(errors.isfinite().any()):
            raise KeyboardInterrupt
        unconverged = (status for status in statuses if status is not Status.CONVERGED)
        status = next(unconverged, Status.CONVERGED)
        return Approximations(values, errors, shown.before, status)

    def _columns_together(self) -> int:
        """How many columns advance together."""
        held = self.steps + 3  # the basis, and a product
        fits = vectors_in(self.A, self.options.memory_budget)
        if fits < held:
            raise_too_small(self.A, held, fits, f"{self.steps} steps", "lower basis_size")
        return min(choose_block_size(self.A, self.options.block_size), fits // held)

    def _fill(self, rows: Tensor, values: Tensor, errors: Tensor, shown: Run) -> list[Status]:
        """Fill in the values and the errors of a group, whose bases are then freed."""
        columns = [self._begin(b, shown) for b in rows]
        self._advance(columns, shown)
        for value, column in zip(values, columns, strict=True):
            value.copy_(column.value())
        errors.copy_(errors.new_tensor([column.state.error for column in columns]))
        return [column.limits.status for column in columns]

    def _begin(self, b: Tensor, shown: Run) -> FunctionColumn:
        lanczos = LanczosProcess(self.A, self.steps, b, self.options.generator)
        length = self.A.domain.norm(b)
        limits = shown.add_part(self.options.limits())
        return FunctionColumn(self.f, lanczos, length, self.rtol, limits)

    def _advance(self, columns: list[FunctionColumn], shown: Run) -> None:
        """Take steps until all columns have ended."""
        with shown:
            while active := [column for column in columns if column.goes_on]:
                step_together(self.A, [column.lanczos for column in active], len(active))
                for column in active:
                    column.after_step()
                shown.show(FunctionState(products=_products(columns)))
        for column in columns:
            if column.goes_on:
                column.limits.status = shown.status
        shown.before += _products(columns)


def _products(columns: list[FunctionColumn]) -> int:
    return sum(column.state.products for column in columns)
