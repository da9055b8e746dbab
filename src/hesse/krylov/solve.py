# SPDX-License-Identifier: Apache-2.0
"""`solve`: linear systems, for any operator and any form of right-hand side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor

from hesse.errors import ArgumentError, ShapeError
from hesse.krylov.cg import CGState, cg
from hesse.krylov.solution import Solution
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors import Tree

# A system is hardly ever solved in fewer products.
_USUAL = 20


def solve(
    A: LinearOperator | Tensor,
    b: Tree,
    method: Literal["auto", "cg"] = "auto",
    preconditioner: LinearOperator | Tensor | None = None,
    *,
    x0: Tree | None = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    max_iterations: int | None = None,
    radius: float = float("inf"),
    stop: Callable[[CGState], bool] | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Solution:
    """Solve A x = b with a symmetric operator A.

    Args:
        A: operator, or a matrix.
        b: right-hand side: a flat vector (n,), or a tree like the operator's.
        method: "cg", conjugate gradients, which "auto" takes.
        preconditioner: symmetric positive definite approximation of the inverse of A.
        x0, rtol, atol, max_iterations, radius, stop, callback, progress: see `hesse.krylov.cg`.

    Returns:
        Solution(x, converged, status, residual_norm, products, ...), x in the form of b. Nothing is
        raised when it does not converge: look at `converged` and at `status.value`.

    Cost: one product an iteration, one to verify the residual, one more for a nonzero x0.

    Raises:
        HesseError: shapes, dtypes or devices that do not match; an operator that is not symmetric.

    >>> import torch
    >>> solve(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 2.0])).x
    tensor([1.0000, 0.5000])
    """
    A = aslinearoperator(A)
    call = f"hesse.solve({A}, b)"
    if method not in ("auto", "cg"):
        raise ArgumentError(
            call, expected="method 'auto' or 'cg'", got=repr(method), remedy="Leave it out."
        )
    flat, leave = _enter(A, b, call, "b")
    A.expect(min(A.domain.n, _USUAL, _USUAL if max_iterations is None else max_iterations))
    start = None if x0 is None else _enter(A, x0, call, "x0")[0]
    solution = cg(
        A,
        flat,
        x0=start,
        preconditioner=_as_preconditioner(preconditioner, A, call),
        rtol=rtol,
        atol=atol,
        max_iterations=max_iterations,
        radius=radius,
        stop=stop,
        callback=callback,
        progress=progress,
    )
    direction = None if solution.direction is None else leave(solution.direction)
    return replace(solution, x=leave(solution.x), direction=direction)


def _enter(A: LinearOperator, b: Tree, call: str, what: str) -> tuple[Tensor, Callable[..., Any]]:
    if isinstance(b, Tensor) and b.ndim == 2 and b.shape != A.domain.shapes[0]:
        raise ShapeError(
            call,
            expected=f"{what} of shape ({A.domain.n},), or a tree like the operator's",
            got=f"shape {tuple(b.shape)}",
            remedy="Solve for one column at a time.",
        )
    return A.domain.enter(b, call=call, what=what)


def _as_preconditioner(
    preconditioner: LinearOperator | Tensor | None, A: LinearOperator, call: str
) -> LinearOperator | None:
    if preconditioner is None:
        return None
    M = aslinearoperator(preconditioner)._in_space(A.domain)
    if M.shape != A.shape:
        raise ShapeError(
            call,
            expected=f"a preconditioner of shape {A.shape}",
            got=f"shape {M.shape}",
            remedy="Give an operator close to the inverse of A.",
        )
    return M
