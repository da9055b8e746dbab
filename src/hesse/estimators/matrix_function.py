# SPDX-License-Identifier: Apache-2.0
"""`matrix_function`: f(A) b for a symmetric operator, by the Lanczos process started from b."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, OperatorError, Status, check_choice
from hesse.estimators.estimate import Estimate
from hesse.krylov.lanczos import Lanczos, unit_roundoff
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run
from hesse.rows import transposed
from hesse.vectors import Tree, norm

Name = Literal["sqrt", "inverse-sqrt", "inverse", "exp", "log", "sign"]
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sqrt": torch.sqrt,
    "inverse-sqrt": torch.rsqrt,
    "inverse": torch.reciprocal,
    "exp": torch.exp,
    "log": torch.log,
    "sign": torch.sign,
}
_POSITIVE = {"inverse-sqrt", "log"}
# The approximation is looked at after 4, 8, 12, ... steps, later at intervals of a tenth.
_INTERVAL, _GROWTH = 4, 1.1


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
        rtol: stop when the estimated error is at most rtol |y|; default the square root of eps.
        basis_size: Lanczos steps at most; so many vectors are held.
        max_products, max_seconds: limits.
        generator: of new directions in an invariant subspace.
        callback: called with a state that has `error` and `products` after every look at the
            error; a true result stops.
        progress: show a bar.

    Returns:
        Estimate: value in the form of b; standard_error, here the larger of the last two changes
        of y over 4 steps or more, which exceeds the error of y_m as long as the process converges
        (a tensor (k,) for a block); products; status.

    Cost: one product a step; m + 1 vectors.

    Raises:
        HesseError: A not symmetric; a Ritz value that is not in the domain of f.

    References: Higham 2008, Functions of Matrices, section 13.2; Saad 1992, doi:10.1137/0729014.

    >>> A = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    >>> matrix_function("sqrt", A, torch.ones(3)).value
    tensor([1.0000, 2.0000, 3.0000])
    """
    A = aslinearoperator(A)
    call = f"hesse.matrix_function({fun!r}, {A}, b)"
    if isinstance(fun, str):
        check_choice("fun", fun, list(_FUNCTIONS), call)
    _check(A, basis_size, call)
    f = _Function(fun, call)
    accuracy = float(unit_roundoff(A) ** 0.5 if rtol is None else rtol)

    def column(v: Tensor) -> Estimate:
        run = Run(
            "f(A) b",
            max_products=max_products,
            max_seconds=max_seconds,
            callback=callback,
            progress=progress,
        )
        lanczos = Lanczos(A, min(basis_size, A.shape[0]), v, generator)
        return _approximate(f, lanczos, norm(v), accuracy, run)

    if isinstance(b, Tensor) and b.ndim == 2 and not A.domain.is_point(b):
        block = A.domain.check_vector(b, call=call, what="b", ndim=2).detach()
        return _joined([column(v) for v in transposed(block)])
    flat, leave = A.domain.enter(b, call=call, what="b")
    estimate = column(flat)
    return Estimate(leave(estimate.value), *estimate[1:], estimate.status, 1.0)


@dataclass
class FunctionState:
    """What a callback sees: the estimated error after so many products."""

    errors: list[float] = field(default_factory=list)
    products: int = 0

    @property
    def error(self) -> float:
        """The larger of the last two differences: one may vanish by chance, as for the sign."""
        return max(self.errors[-2:], default=math.inf)


def _approximate(f: _Function, lanczos: Lanczos, b_norm: float, rtol: float, run: Run) -> Estimate:
    """|b| V f(T) e_1."""
    y, state, steps = torch.zeros(0, dtype=torch.float64), FunctionState(), len(lanczos.T) - 1
    if b_norm == 0.0:
        return Estimate(lanczos.A.domain.zeros(), 0.0, 0, Status.CONVERGED, 1.0)
    with run:
        while run.goes_on(state):
            look = max(len(y) + _INTERVAL, math.ceil(_GROWTH * len(y)))
            while lanczos.size < min(look, steps) and run.goes_on(state):
                lanczos.step()
                state.products = lanczos.products
            last, y = y, b_norm * f.first_column(lanczos)
            state.errors.append(0.0 if lanczos.is_invariant else _distance(y, last))
            if lanczos.is_invariant or state.error <= rtol * float(y.norm()):
                run.status = Status.CONVERGED
            elif lanczos.size == steps:
                run.status = Status.MAX_ITERATIONS
            else:
                run.after_step(state)
    if len(y) == 0:
        raise KeyboardInterrupt
    value = lanczos.combine(y[:, None])[0]
    error = 0.0 if lanczos.is_invariant else state.error
    return Estimate(value, error, lanczos.products, run.status, 1.0)


def _distance(y: Tensor, earlier: Tensor) -> float:
    return float((y - torch.nn.functional.pad(earlier, (0, len(y) - len(earlier)))).norm())


class _Function:
    """f on the Ritz values, which must be in its domain."""

    def __init__(self, fun: str | Callable[[Tensor], Tensor], call: str) -> None:
        self.fun, self.call = fun, call

    def first_column(self, lanczos: Lanczos) -> Tensor:
        """f(T) e_1."""
        values, coordinates, _ = lanczos.ritz()
        rounding = 10 * unit_roundoff(lanczos.A) * float(values.abs().max())
        f = self._at(values, rounding)
        return coordinates @ (f * coordinates[0])

    def _at(self, values: Tensor, rounding: float) -> Tensor:
        if not isinstance(self.fun, str):
            return self.fun(values)
        smallest = float(values.min())
        if self.fun == "sqrt" and smallest >= -rounding:
            values = values.clamp(min=0.0)  # zero, to rounding
        elif self.fun in ("sqrt", *_POSITIVE) and smallest <= rounding:
            semi = "semi-" if self.fun == "sqrt" else ""
            raise OperatorError(
                self.call,
                expected=f"a positive {semi}definite operator",
                got=f"a Ritz value of {smallest:.3g}",
                remedy="Add damping, A + c * I, or take a function that is defined there.",
            )
        return _FUNCTIONS[self.fun](values)


def _joined(columns: list[Estimate]) -> Estimate:
    """The columns of a block as one."""
    worst = next((c for c in columns if c.status is not Status.CONVERGED), columns[-1])
    return Estimate(
        torch.stack([c.value for c in columns], dim=1),
        torch.tensor([c.standard_error for c in columns], dtype=torch.float64),
        sum(c.products for c in columns),
        worst.status,
        1.0,
    )


def _check(A: LinearOperator, basis_size: int, call: str) -> None:
    A._check_symmetric(call)
    if basis_size < 1:
        raise ArgumentError(
            call, expected="basis_size >= 1", got=str(basis_size), remedy="Leave it out for 200."
        )
