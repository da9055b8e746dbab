# SPDX-License-Identifier: Apache-2.0
"""`inverse_operator`: A^-1 as an operator, exact where structure has it, else solved for."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, Status, check_not_empty
from hesse.krylov.auto import Auto
from hesse.krylov.direct import Direct
from hesse.krylov.method import Method
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.rounding import unit_roundoff
from hesse.krylov.solve import Name, as_method, solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_square
from hesse.operators.dense import aslinearoperator


class SolvingOperator(LinearOperator):
    """A^-1 by a linear system for every product; see `inverse_operator`."""

    def __init__(
        self,
        A: LinearOperator,
        method: Method | Auto,
        preconditioner: LinearOperator | None,
        rtol: float,
        max_iterations: int | None,
    ) -> None:
        super().__init__(A.domain, symmetric=A.symmetric)
        self.A, self.method, self.preconditioner = A, method, preconditioner
        self.rtol, self.max_iterations = rtol, max_iterations
        self.products = 0

    def _matvec(self, v: Tensor) -> Tensor:
        return self._solve(self.A, v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._solve(self.A.T, u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._solve(self.A, block)

    def _inverse(self) -> LinearOperator:
        return self.A

    def _expression(self) -> str:
        return f"inverse of {self.A._expression()}"

    def _solve(self, A: LinearOperator, b: Tensor) -> Tensor:
        solution = solve(
            A,
            b,
            self.method,
            self.preconditioner,
            rtol=self.rtol,
            max_iterations=self.max_iterations,
        )
        self.products += solution.products
        if solution.converged:
            return solution.x
        if solution.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
        raise OperatorError(
            expected=f"a solution of A x = v with |v - A x| <= {self.rtol:.1g} |v|",
            got=f"|v - A x| = {solution.residual_norm:.3g}. {solution.status.value}",
            remedy="Add damping, A + c * I, give a preconditioner, or loosen rtol.",
        )


@public("hesse.inverse_operator({A}, method={method})")
def inverse_operator(
    A: LinearOperator | Tensor,
    *,
    method: Name | Method | Auto = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    rtol: float | None = None,
    max_iterations: int | None = None,
    generator: torch.Generator | None = None,
) -> LinearOperator:
    """The inverse of a square operator as an operator.

    Where the structure of A gives its inverse (dense, diagonal, block-diagonal, Kronecker, low rank
    plus diagonal, ...), and no option of a solver is given, it is that, exactly. Else every product
    solves a system with A, and raises if it does not converge: a product is right or an error.

    Args:
        A: square operator (or matrix).
        method, preconditioner, max_iterations, generator: of `solve`; the preconditioner is made
            once.
        rtol: of the residual, default 100 eps^(2/3), so that the inverse is linear to nearly the
            precision of its vectors.

    Cost: of a product, that of `solve`; the operator counts the `products` it took.

    Raises:
        HesseError: A not square; in a product, a system that was not solved.

    >>> inverse_operator(torch.diag(torch.tensor([1.0, 2.0]))) @ torch.ones(2)
    tensor([1.0000, 0.5000])
    """
    A = aslinearoperator(A)
    check_square(A)
    check_not_empty(A.shape)
    chosen = as_method(method)
    options = (preconditioner, rtol, max_iterations)
    if isinstance(chosen, (Auto, Direct)) and all(value is None for value in options):
        inverse = A._inverse()
        if inverse is not None:
            return inverse
    M = as_preconditioner(preconditioner, A, generator)
    accuracy = 100 * unit_roundoff(A) ** (2 / 3) if rtol is None else rtol
    return SolvingOperator(A, chosen, M, accuracy, max_iterations)
