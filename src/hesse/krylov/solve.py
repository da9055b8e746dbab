# SPDX-License-Identifier: Apache-2.0
"""`solve`: linear systems, for any operator and any form of right-hand side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath
from hesse.errors import (
    ArgumentError,
    ShapeError,
    Status,
    check_choice,
    check_count,
    check_not_empty,
    check_tolerances,
)
from hesse.krylov.block_cg import block_cg
from hesse.krylov.cg import CGRules, CGState, solve_cg
from hesse.krylov.columns import by_columns
from hesse.krylov.direct import direct
from hesse.krylov.gmres import gmres
from hesse.krylov.lsmr import lsmr
from hesse.krylov.minres import minres
from hesse.krylov.multi_shift_cg import as_shifts, multi_shift_cg
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.solution import Solution
from hesse.krylov.system import System
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.vectors.space import Tree

Method = Literal["auto", "cg", "block-cg", "multi-shift-cg", "minres", "lsmr", "gmres", "direct"]
METHODS = ["auto", "cg", "block-cg", "multi-shift-cg", "minres", "lsmr", "gmres", "direct"]

# A system is hardly ever solved in fewer products.
_USUAL = 20

# A residual at the start, a step, and a residual at the end.
_TO_BEGIN = 3


@public("hesse.solve({A}, b)")
def solve(
    A: LinearOperator | Tensor,
    b: Tree,
    method: Method = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    *,
    x0: Tree | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    shifts: Sequence[float] | Tensor | None = None,
    damping: float = 0.0,
    radius: float = math.inf,
    stop: Callable[[CGState], bool] | None = None,
    keep: Callable[[int], bool] | None = None,
    replace_every: int | None = None,
    restart: int = 30,
    max_iterations: int | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Solution:
    r"""Solve A x = b, or minimise |b - A x| where there is no solution.

    | method | for | by |
    |---|---|---|
    | "cg" | symmetric positive definite A | conjugate gradients, stopped by negative curvature |
    | "block-cg" | the same, b a block | one block of products an iteration for all columns |
    | "multi-shift-cg" | (A + s I) x = b for many s | conjugate gradients, once for all shifts |
    | "minres" | symmetric, indefinite or singular A | the least residual in the Krylov space |
    | "lsmr" | rectangular A, damped or not | least squares by products with A and A' |
    | "gmres" | square A that is not symmetric | the least residual, restarted |
    | "direct" | structured A: dense, diagonal, low-rank + diagonal, ... | its exact inverse |

    "auto" takes "direct" where A has a cheap inverse and nothing is asked of an iteration, "lsmr"
    for rectangular A, "gmres" for A not known to be symmetric, "multi-shift-cg" for shifts;
    else "cg" (a block: "block-cg"), from which "minres" takes over at a direction of negative
    curvature. `Solution.method` says which found the solution.

    Args:
        A: operator, or a matrix.
        b: right-hand side: a flat vector (m,), a block (m, k), or a tree like the operator's.
        method: one of the above.
        preconditioner: symmetric positive definite approximation of the inverse of A (of gmres: any
            approximation), or the name of a way to make one: "jacobi", "block-jacobi", "nystrom",
            "pivoted-cholesky" (see `hesse.krylov.preconditioners`).
        x0: where to start, in the form of x; default 0.
        rtol, atol: converged when |b - A x| <= max(rtol |b|, atol), for every column of a block.
        shifts: the s of (A + s I) x = b; x has a column for each.
        damping: of lsmr, which then minimises |b - A x|^2 + damping |x|^2.
        radius: of cg, stop on the sphere |x| = radius (Steihaug's rule).
        stop: of cg, a further rule on the state after a step, see `hesse.krylov.stopping`.
        keep: of cg, keep the iterates whose number it accepts.
        replace_every: of cg, recompute the residual every so many iterations.
        restart: of gmres, the size of its basis.
        max_iterations, max_products, max_seconds: limits; default 10 n iterations. What a named
            preconditioner takes and what verifies the residual is within max_products, where too
            few for a step give x0.
        generator: of a preconditioner that is random; with a checkpoint one of a fixed seed.
        callback: called with the state after every step; a true result stops.
        progress: show a bar.
        checkpoint: path of a file, from which the same call goes on, to the same bits, after it was
            killed (see `hesse.checkpoint`; one product more to recognise A).

    Returns:
        Solution(x, converged, status, residual_norm, products, ...), x in the form of b. Nothing is
        raised when it does not converge: look at `converged` and at `status.value`. Ctrl-C returns
        the best so far.

    Cost: cg, minres and gmres one product an iteration, lsmr two, block-cg k; one to verify the
        residual of a column, one more for a nonzero x0; those that a preconditioner took.

    Raises:
        HesseError: shapes, dtypes or devices that do not match; a method that A is not for.

    >>> import torch
    >>> solve(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 2.0])).x
    tensor([1.0000, 0.5000])
    """
    A = aslinearoperator(A)
    call = f"hesse.solve({A}, b, method={method!r})"
    check_choice("method", method, METHODS, call)
    check_tolerances(call, damping=damping)
    check_not_empty(call, A.shape)
    flat, leave = _enter(A, b, call)
    start = None if x0 is None else _enter_x0(A, x0, flat, call)
    rules = CGRules(radius, stop, keep, replace_every=replace_every)
    restart = check_count("restart", restart, 1, call)
    own = _Own(rules, as_shifts(shifts, call), damping, restart)
    own.check(method, call)
    run = Run(
        "solve",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
    )
    if generator is None and checkpoint is not None:  # the preconditioner must be the same again
        generator = torch.Generator().manual_seed(0)
    M = as_preconditioner(preconditioner, A, generator, call, run.left())
    run.before = built = 0 if M is None else M.products
    asked = (start, M, callback, max_iterations, max_products, max_seconds, checkpoint)
    question = {"method": method, "rtol": rtol, "atol": atol, "b": flat, "x0": start}
    question |= {"preconditioner": M, **own.question()}
    file = Checkpoint(checkpoint, A, call="solve", **question)
    system = System(A, flat, start, M, rtol, atol, max_iterations, run, file)
    A.announce(min(A.domain.n, _USUAL, system.limit))
    if method != "auto":
        solution = _by(method, system, own)
    else:
        solution = _auto(system, own, iterate=any(value is not None for value in asked))
    direction = solution.direction
    return replace(
        solution,
        x=leave(solution.x),
        direction=None if direction is None else leave(direction),
        products=solution.products + built,
    )


@dataclass(frozen=True)
class _Own:
    """The arguments that belong to one method alone."""

    rules: CGRules
    shifts: list[float] | None
    damping: float
    restart: int

    @property
    def method(self) -> str | None:
        """The method that the arguments belong to, if any was given."""
        return next(iter(self._methods), None)

    @property
    def _methods(self) -> list[str]:
        given = {
            "multi-shift-cg": self.shifts is not None,
            "lsmr": self.damping != 0.0,
            "cg": self.rules != CGRules(),
        }
        return [method for method, is_given in given.items() if is_given]

    def check(self, method: str, call: str) -> None:
        """Raise unless the arguments are those of this method."""
        if len(self._methods) > 1:
            raise ArgumentError(
                call,
                expected="arguments that belong to one method",
                got=" and ".join(f"one of {method!r}" for method in self._methods),
                remedy="Leave out shifts, damping, or what belongs to cg.",
            )
        if self.method not in (None, method) and method != "auto":
            raise ArgumentError(
                call,
                expected=f"arguments of {method!r}",
                got=f"one that belongs to {self.method!r}",
                remedy=f"Leave it out, or take method={self.method!r}.",
            )
        if method == "multi-shift-cg" and self.shifts is None:
            raise ArgumentError(
                call,
                expected="shifts=[s1, s2, ...]",
                got="none",
                remedy="Give them, or take method='cg'.",
            )

    def question(self) -> dict[str, Any]:
        """What a checkpoint is recognised by."""
        numbers = {"radius": self.rules.radius, "replace_every": self.rules.replace_every}
        own = {"shifts": self.shifts, "damping": self.damping, "restart": self.restart}
        return {**own, **numbers}


def _by(method: str, system: System, own: _Own) -> Solution:
    """The solution by a method of that name."""
    if method == "block-cg":
        system.run.reserved = system.b.shape[1] if system.b.ndim == 2 else 1
        return block_cg(system) if system.b.ndim == 2 else _one_column(system)
    if system.b.ndim == 2:
        return by_columns(lambda column: _by(method, column, own), system)
    system.run.reserved = len(own.shifts or [0])  # a product verifies a column of x
    match method:
        case "multi-shift-cg":
            assert own.shifts is not None
            return multi_shift_cg(system, own.shifts)
        case "minres":
            return minres(system)
        case "lsmr":
            return lsmr(system, own.damping)
        case "gmres":
            return gmres(system, own.restart)
        case "direct":
            return direct(system, system.A._inverse())
        case _:
            return solve_cg(system, own.rules)


def _one_column(system: System) -> Solution:
    """The solution by block-cg for a vector b."""
    x0 = None if system.x0 is None else system.x0[:, None]
    solution = block_cg(replace(system, b=system.b[:, None], x0=x0))
    return replace(solution, x=solution.x[:, 0], residual_norms=None)


def _auto(system: System, own: _Own, *, iterate: bool) -> Solution:
    """The solution by the method that suits A and what was asked."""
    A = system.A
    if own.method is not None:
        return _by(own.method, system, own)
    if iterate or A.shape[0] != A.shape[1] or A._inverse() is None:
        return _iterative(system, own)
    solution = _by("direct", system, own)
    if solution.converged:
        return solution
    later = _iterative(system, own)
    return replace(later, products=solution.products + later.products)


def _iterative(system: System, own: _Own) -> Solution:
    """The solution by the method that suits A alone."""
    A, block = system.A, system.b.ndim == 2
    if A.shape[0] != A.shape[1]:
        return _by("lsmr", system, own)
    if not A.symmetric:
        return _by("gmres", system, own)
    solution = _by("block-cg" if block else "cg", system, own)
    if solution.status is not Status.NEGATIVE_CURVATURE:
        return solution
    if system.run.left(solution.products) < _TO_BEGIN:
        return replace(solution, status=Status.MAX_PRODUCTS)
    return _taken_over(solution, system, own)


def _taken_over(solution: Solution, system: System, own: _Own) -> Solution:
    """What minres makes of the iterate at which conjugate gradients met negative curvature."""
    file = None if system.checkpoint is None else system.checkpoint.part("minres")
    system.run.before += solution.products
    later = _by("minres", replace(system, x0=solution.x, checkpoint=file), own)
    return replace(
        later,
        products=solution.products + later.products,
        iterations=solution.iterations + later.iterations,
        history=solution.history + later.history,
        direction=solution.direction,
    )


def _enter(A: LinearOperator, b: Tree, call: str) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """b as a flat vector or a block, and the way from an x to the form of b."""
    space = A.codomain
    if isinstance(b, Tensor) and b.ndim == 2 and not space.is_point(b):
        if b.shape[1] == 0:
            raise ShapeError(
                call,
                expected="b with at least one column",
                got=f"shape {tuple(b.shape)}",
                remedy="Give a right-hand side.",
            )
        return space.check_vector(b.detach(), call=call, what="b", ndim=2), lambda x: x
    flat, leave = space.enter(b, call=call, what="b")
    is_tree = leave == space.unflatten
    return flat, lambda x: A.domain.unflatten(x) if is_tree and x.ndim == 1 else x


def _enter_x0(A: LinearOperator, x0: Tree, b: Tensor, call: str) -> Tensor:
    if b.ndim == 1:
        return A.domain.enter(x0, call=call, what="x0")[0]
    block = A.domain.check_vector(x0, call=call, what="x0", ndim=2).detach()
    if block.shape[1] != b.shape[1]:
        raise ShapeError(
            call,
            expected=f"x0 with {b.shape[1]} columns, like b",
            got=f"shape {tuple(block.shape)}",
            remedy="Give a start for every column.",
        )
    return block
