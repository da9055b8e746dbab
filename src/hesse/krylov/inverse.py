# SPDX-License-Identifier: Apache-2.0
"""`inverse_operator`: A^-1 as an operator, exact where structure has it, else solved for."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, check_choice, check_not_empty
from hesse.krylov.preconditioners import as_preconditioner
from hesse.krylov.solve import METHODS, Method, solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator


class SolvingOperator(LinearOperator):
    """A^-1 by a linear system for every product; see `inverse_operator`."""

    def __init__(
        self,
        A: LinearOperator,
        method: Method,
        preconditioner: LinearOperator | None,
        rtol: float,
        max_iterations: int | None,
    ) -> None:
        super().__init__(A.domain, symmetric=A.symmetric)
        self.A, self.preconditioner = A, preconditioner
        self.method: Method = method
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
        raise OperatorError(
            f"hesse.inverse_operator({self.A}) @ v",
            expected=f"a solution with |v - A x| <= {self.rtol:.1g} |v|",
            got=f"|v - A x| = {solution.residual_norm:.3g}. {solution.status.value}",
            remedy="Add damping, A + c * I, give a preconditioner, or loosen rtol.",
        )

    def inner(self, u: Tensor, v: Tensor) -> float:
        return self.A.domain.inner(u, v)

    def inners(self, basis: Tensor, v: Tensor) -> Tensor:
        return self.A.domain.inners(basis, v)


@public("hesse.inverse_operator({A})")
def inverse_operator(
    A: LinearOperator | Tensor,
    *,
    method: Method = "auto",
    preconditioner: LinearOperator | Tensor | str | None = None,
    rtol: float | None = None,
    max_iterations: int | None = None,
    generator: torch.Generator | None = None,
) -> LinearOperator:
    """The inverse of a square operator as an operator.

    Where the structure of A gives its inverse (dense, diagonal, block-diagonal, Kronecker, low rank
    plus diagonal, ...), and nothing is asked of a solver, it is that, exactly. Else every product
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
    A._check_square("inverse_operator")
    check_choice("method", method, METHODS, f"hesse.inverse_operator({A})")
    check_not_empty(f"hesse.inverse_operator({A})", A.shape)
    asked = (preconditioner, rtol, max_iterations)
    if method in ("auto", "direct") and all(value is None for value in asked):
        inverse = A._inverse()
        if inverse is not None:
            return inverse
    M = as_preconditioner(preconditioner, A, generator, f"hesse.inverse_operator({A})")
    accuracy = 100 * torch.finfo(A.dtype).eps ** (2 / 3) if rtol is None else rtol
    return SolvingOperator(A, method, M, accuracy, max_iterations)
