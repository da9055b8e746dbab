# SPDX-License-Identifier: Apache-2.0
"""`matrix_function`: f(A) b for a symmetric operator, by the Lanczos process started from b."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, Status, check_count, check_not_empty, check_tolerances
from hesse.estimators.arguments import Budget, block_size_of, vector_bytes, vectors_in
from hesse.estimators.estimate import Estimate
from hesse.estimators.function_column import FIRST_LOOK, FunctionColumn, FunctionState
from hesse.estimators.lockstep import step_together
from hesse.estimators.ritz_function import Name, RitzFunction
from hesse.krylov.lanczos import Lanczos, unit_roundoff
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.vectors.inner_products import norm
from hesse.vectors.rows import empty_rows, transposed
from hesse.vectors.space import Tree, check_finite


@public("hesse.matrix_function(fun, {A}, b)")
def matrix_function(
    fun: Name | Callable[[Tensor], Tensor],
    A: LinearOperator | Tensor,
    b: Tree,
    *,
    rtol: float | None = None,
    basis_size: int = 200,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""f(A) b for symmetric A, with an estimate of its error.

    $$ f(A)\, b = \sum_i f(\lambda_i)\, u_i u_i^T b \approx
       \lVert b \rVert\, V_m f(T_m)\, e_1 = y_m $$

    Args:
        fun: "sqrt", "inverse-sqrt", "inverse", "exp", "log", "sign", or a function of a float64
            tensor of eigenvalues, entry by entry.
        A: symmetric operator (or matrix); for "sqrt" positive semi-definite, for "inverse-sqrt" and
            "log" positive definite.
        b: flat vector (n,), block (n, k), or a tree.
        rtol: stop when the estimated error is at most rtol |y|; default the square root of eps. A
            column stops by itself.
        basis_size: Lanczos steps at most; so many vectors are held for a column.
        max_products, max_seconds: limits of a column; those that go together share the time.
        generator: of directions out of an invariant subspace, on which the answer does not depend.
        callback: called with a state that has `error` and `products`, those of a column, after
            every look at its error; a true result stops the column.
        progress: show a bar.
        block_size: columns that go together. Default 8, for n > 2^16 one after the other.
        memory_budget: bytes, or a text such as "1GB", for what the columns hold that go together.

    Returns:
        Estimate: value in the form of b; standard_error, here the larger of the last two changes
        of y over 4 steps or more, which exceeds the error of y_m as long as the process converges
        (a tensor (k,) for a block); products; status, that of the first column that has not
        converged. After Ctrl-C a column that was not looked at yet is 0, its error infinite.

    Cost: a product a step and column: m blocks of products for m steps of the columns that go
        together; basis_size + 5 vectors for each of these columns, 2 for every column, and two
        fewer for a single one.

    Raises:
        HesseError: A not symmetric; a Ritz value that is not in the domain of f; NaN; a budget that
            is too small.

    References: Higham 2008, Functions of Matrices, section 13.2; Saad 1992, doi:10.1137/0729014.

    >>> A = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    >>> matrix_function("sqrt", A, torch.ones(3)).value
    tensor([1.0000, 2.0000, 3.0000])
    """
    A = aslinearoperator(A)
    call = f"hesse.matrix_function({fun!r}, {A}, b)"
    f, steps = RitzFunction(fun, call), _steps(A, basis_size, call)
    accuracy = unit_roundoff(A) ** 0.5 if rtol is None else rtol
    check_tolerances(call, rtol=accuracy)
    together = _together(A, steps, block_size, memory_budget, call)
    most = steps
    if max_products is not None:
        most = min(steps, check_count("max_products", max_products, 1, call))

    def begin(v: Tensor) -> FunctionColumn:
        run = Run("f(A) b", max_products=max_products, max_seconds=max_seconds, callback=callback)
        return FunctionColumn(f, Lanczos(A, steps, v, generator), norm(v), accuracy, run)

    groups = _Groups(A, begin, together, most, progress, call)
    if isinstance(b, Tensor) and b.ndim == 2 and not A.domain.is_point(b):
        block = A.domain.check_vector(b, call=call, what="b", ndim=2).detach()
        check_finite("b", block, call)
        values, errors, products, status = groups.approximate(transposed(block))
        return Estimate(values.T, errors, products, status, 1.0)
    flat, leave = A.domain.enter(b, call=call, what="b")
    values, errors, products, status = groups.approximate(check_finite("b", flat, call)[None])
    return Estimate(leave(values[0]), float(errors[0]), products, status, 1.0)


@dataclass
class _Groups:
    """So many columns at a time, which go in lock-step until the last of them has ended."""

    A: LinearOperator
    begin: Callable[[Tensor], FunctionColumn]
    size: int
    most: int
    """Products of a column."""
    progress: bool
    call: str

    def approximate(self, rows: Tensor) -> tuple[Tensor, Tensor, int, Status]:
        """f(A) b for every row b, as rows, and the errors; products, and how it ended."""
        self.A.announce(FIRST_LOOK * len(rows))
        shown = Run("f(A) b", progress=self.progress, total=self.most * len(rows))
        values = empty_rows(*rows.shape, dtype=rows.dtype, device=rows.device)
        errors = torch.full((len(rows),), math.inf, dtype=torch.float64)
        statuses: list[Status] = []
        while len(statuses) < len(rows) and shown.status is Status.UNFINISHED:
            group = slice(len(statuses), len(statuses) + self.size)
            statuses += self._take(rows[group], values[group], errors[group], shown)
        values[len(statuses) :] = 0.0
        if shown.status is Status.INTERRUPTED and not bool(errors.isfinite().any()):
            raise KeyboardInterrupt
        failed = (status for status in statuses if status is not Status.CONVERGED)
        return values, errors, shown.before, next(failed, Status.CONVERGED)

    def _take(self, rows: Tensor, values: Tensor, errors: Tensor, shown: Run) -> list[Status]:
        """Fill in the values and the errors of a group; its bases are then let go."""
        columns = [self.begin(v) for v in rows]
        self._advance(columns, shown)
        for value, column in zip(values, columns, strict=True):
            value.copy_(column.value())
        errors.copy_(errors.new_tensor([column.state.error for column in columns]))
        return [column.run.status for column in columns]

    def _advance(self, columns: list[FunctionColumn], shown: Run) -> None:
        """Take steps until none of the columns goes on."""
        with shown:
            while alive := [column for column in columns if column.goes_on]:
                step_together(self.A, [c.lanczos for c in alive], len(alive), self.call)
                for column in alive:
                    column.after_step()
                shown.show(FunctionState(products=_products(columns)))
        for column in columns:
            if column.goes_on:
                column.run.status = shown.status
        shown.before += _products(columns)


def _products(columns: list[FunctionColumn]) -> int:
    return sum(column.state.products for column in columns)


def _steps(A: LinearOperator, basis_size: int, call: str) -> int:
    """Lanczos steps at most."""
    A._check_symmetric(call)
    check_not_empty(call, A.shape)
    return min(check_count("basis_size", basis_size, 1, call), A.shape[0])


def _together(
    A: LinearOperator, steps: int, block_size: int | None, memory_budget: Budget, call: str
) -> int:
    """How many columns go together."""
    held, fits = steps + 3, vectors_in(A, memory_budget, call)  # the basis and a product
    if fits < held:
        raise ArgumentError(
            call,
            expected=f"a memory budget of at least {held * vector_bytes(A):,} bytes, for {steps} "
            "steps",
            got=f"room for {fits} vectors of {vector_bytes(A):,} bytes",
            remedy="Raise memory_budget, or lower basis_size.",
        )
    return min(block_size_of(A, block_size, call), fits // held)
