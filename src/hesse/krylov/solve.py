# SPDX-License-Identifier: Apache-2.0
"""`solve`: linear systems, for any operator and any form of right-hand side."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import Checkpoint, FilePath
from hesse.errors import ArgumentError, ShapeError, check_not_empty, is_number
from hesse.krylov.auto import Auto
from hesse.krylov.block_cg import BlockCG
from hesse.krylov.cg import CG
from hesse.krylov.direct import Direct
from hesse.krylov.gmres import GMRES
from hesse.krylov.lsmr import LSMR
from hesse.krylov.method import Method
from hesse.krylov.minres import MINRES
from hesse.krylov.multi_shift_cg import MultiShiftCG
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.scaled_system import solve_scaled
from hesse.krylov.solution import Solution
from hesse.krylov.system import System
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.operators.diagonal import IdentityOperator
from hesse.progress import Callback, Run
from hesse.ranks import share_run_of
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.space import Tree

Name = Literal["auto", "direct", "cg", "block-cg", "minres", "lsmr", "gmres"]
_METHODS: dict[str, Method | Auto] = {
    method.name: method for method in (Auto(), Direct(), CG(), BlockCG(), MINRES(), LSMR(), GMRES())
}

# A system is hardly ever solved in fewer products.
_FEW_PRODUCTS = 20


@public("hesse.solve({A}, b, method={method})")
def solve(
    A: LinearOperator | Tensor,
    b: Tree,
    method: Name | Method | Auto = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    *,
    damping: float = 0.0,
    x0: Tree | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
) -> Solution:
    r"""Solve A x = b or (A + c I) x = b, or minimise |b - A x| where there is no solution.

    | method | for | by |
    |---|---|---|
    | "cg", `CG(...)` | symmetric positive definite A | conjugate gradients |
    | "block-cg", `BlockCG()` | the same, b a block | one block of products an iteration |
    | `MultiShiftCG(shifts)` | (A + s I) x = b for many s | conjugate gradients, once for all s |
    | "minres", `MINRES()` | symmetric, indefinite or singular A | the least residual |
    | "lsmr", `LSMR(tikhonov)` | rectangular A, penalised or not | products with A and A' |
    | "gmres", `GMRES(restart)` | square A that is not symmetric | the least residual, restarted |
    | "direct", `Direct()` | dense, diagonal, low-rank + diagonal, ... A | its exact inverse |

    "auto" takes "direct" where A has a cheap inverse and no option of an iteration is given, "lsmr"
    for rectangular A, "gmres" for A not known to be symmetric; else "cg" (a block: "block-cg"),
    from which "minres" continues at a direction of negative curvature. `Solution.method` says which
    found the solution.

    Args:
        A: operator, or a matrix.
        b: right-hand side: a flat vector (m,), a block (m, k), or a tree like the operator's.
        method: one of the above: an object with the options of the method, or a name for the
            default options.
        preconditioner: symmetric positive definite approximation of the inverse of A (for gmres any
            approximation), or the name of a way to make one: "jacobi", "block-jacobi", "nystrom",
            "pivoted-cholesky" (see `hesse.krylov.preconditioners`).
        damping: c >= 0, to solve (A + c I) x = b with a square A: the same as `A + c * I`. (The
            least squares of |b - A x|^2 + c |x|^2 are those of the method `LSMR(tikhonov=c)`.)
        x0: where to start, in the form of x; default 0.
        rtol, atol: converged when |b - A x| <= max(rtol |b|, atol), for every column of a block.
        max_iterations, max_products, max_seconds: limits; default 10 n iterations. The products for
            a named preconditioner and for the verification of the residual count towards
            max_products; if these leave none for a step, x0 is returned.
        generator: of a preconditioner that is random; with a checkpoint one of a fixed seed.
        callback: called with the state after every step; a true result stops.
        progress: show a bar.
        checkpoint: path of a file, from which the same call continues, to the same bits, after it
            was killed (see `hesse.checkpoint`; one product more to recognise A).

    Returns:
        Solution(x, converged, status, residual_norm, products, ...), x in the form of b. Nothing is
        raised when it does not converge: look at `converged` and at `status.value`. Ctrl-C returns
        the best so far.

    Cost: cg, minres and gmres one product an iteration, lsmr two, block-cg k; one to verify the
        residual of a column, one more for a nonzero x0; those for a named preconditioner.

    Raises:
        HesseError: shapes, dtypes or devices that do not match; a method that A is not for; damping
            of an A that is not square.

    >>> import torch
    >>> solve(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 2.0])).x
    tensor([1.0000, 0.5000])
    """
    A = aslinearoperator(A)
    check_not_empty(A.shape)
    A = _damped(A, damping)
    chosen = as_method(method)
    flat, leave = _enter(A, b)
    start = None if x0 is None else _enter_x0(A, x0, flat)
    run = Run(
        "solve",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    share_run_of(run, A.domain.ranks)
    if generator is None and checkpoint is not None:  # the preconditioner must be the same again
        generator = torch.Generator().manual_seed(0)
    M = as_preconditioner(preconditioner, A, generator, run.left())
    run.before = built = 0 if M is None else M.products
    run_key = {"method": repr(chosen), "rtol": rtol, "atol": atol, "b": flat, "x0": start}
    file = Checkpoint(run.checkpoint, A, function="solve", **run_key, preconditioner=M)
    system = System(A, flat, start, M, rtol, atol, max_iterations, run, file)
    A.announce(min(A.domain.n, _FEW_PRODUCTS, system.limit))
    solution = solve_scaled(chosen, system)
    direction = solution.direction
    return replace(
        solution,
        x=leave(solution.x),
        direction=None if direction is None else leave(direction),
        products=solution.products + built,
    )


def as_method(method: Name | Method | Auto) -> Method | Auto:
    """The method that a name stands for, or the object itself."""
    if isinstance(method, str) and method == MultiShiftCG.name:
        raise ArgumentError(
            expected="the shifts of method='multi-shift-cg'",
            got="its name alone",
            remedy="Give method=MultiShiftCG([s1, s2, ...]).",
        )
    return find_method(method, _METHODS, "solve_system")


def _damped(A: LinearOperator, damping: float) -> LinearOperator:
    """A + damping I; A itself without damping."""
    if not (is_number(damping) and math.isfinite(damping) and damping >= 0.0):
        raise ArgumentError(
            expected="damping, the c >= 0 of (A + c I) x = b",
            got=repr(damping),
            remedy="Leave it out for none; for a shift of any sign pass A + c * I with "
            "I = hesse.identity_operator(n).",
        )
    if damping == 0.0:
        return A
    rows, columns = A.shape
    if rows != columns:
        raise ShapeError(
            expected="a square operator, for (A + damping I) x = b",
            got=f"shape {A.shape}",
            remedy="For the least squares of |b - A x|^2 + c |x|^2 leave out damping, and give "
            "method=hesse.LSMR(tikhonov=c).",
        )
    return A + damping * IdentityOperator(A.domain)


def _enter(A: LinearOperator, b: Tree) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """b as a flat vector or a block, and a function that gives x in the form of b."""
    given = as_tensor(b, A.device)
    if not (isinstance(given, Tensor) and given.ndim == 2) or A.codomain.is_point(given):
        flat, leave = A.codomain.enter(b, what="b", codomain=A.domain)
        return flat, lambda x: leave(x) if x.ndim == 1 else x
    if given.shape[1] == 0:
        raise ShapeError(
            expected="b with at least one column",
            got=f"shape {tuple(given.shape)}",
            remedy="Give a right-hand side.",
        )
    block = A.codomain.check_vector(given.detach(), what="b", ndim=2)
    return block, (lambda x: x) if given is b else as_array


def _enter_x0(A: LinearOperator, x0: Tree, b: Tensor) -> Tensor:
    if b.ndim == 1:
        return A.domain.enter(x0, what="x0")[0]
    block = A.domain.check_vector(as_tensor(x0, A.device), what="x0", ndim=2).detach()
    if block.shape[1] != b.shape[1]:
        raise ShapeError(
            expected=f"x0 with {b.shape[1]} columns, like b",
            got=f"shape {tuple(block.shape)}",
            remedy="Give a start for every column.",
        )
    return block
