# SPDX-License-Identifier: Apache-2.0
"""`LeastSquaresResult`: what a fit returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from hesse.errors import Status
from hesse.operators.algebra import LinearOperator
from hesse.result import Result
from hesse.vectors.space import Tree


@dataclass(frozen=True, repr=False)
class LeastSquaresResult(Result):
    """The result of a fit, with the fields of SciPy's OptimizeResult for least squares."""

    x: Tree
    """The best point, in the form of x0."""
    cost: float
    """Half the sum of squares, or of losses, at x."""
    fun: Tree
    """The residuals r(x), in the form of r."""
    jac: LinearOperator
    """The Jacobian at x, its rows weighted by the loss: jac.T @ jac approximates the Hessian."""
    grad: Tree
    """The gradient of the cost, in the form of x0."""
    optimality: float
    """Its largest entry, of the variables that are not held at a bound."""
    active_mask: Tree
    """-1 for a variable at its lower bound, 1 at its upper one, 0 otherwise."""
    nfev: int
    """Evaluations of r."""
    njev: int
    """Points at which the Jacobian was taken."""
    nhev: int
    """Points at which the second derivatives of r were taken."""
    nit: int
    """Steps."""
    products: int
    """Products with Jacobians and their adjoints; a matrix counts as many as its shorter side."""
    status: Status
    """Why the fit ended."""
    message: str
    """The same as a sentence, with the test that was met."""
    success: bool
    """Whether a test was met."""
    covariance: LinearOperator | None
    """2 cost / (m - rank) (J'J)^-1: the covariance of x if errors are independent and equal, with
    the pseudo-inverse where J has no full rank, and zero for variables at a bound. None unless
    there are more residuals than that rank, for which method "lsmr" takes n."""
    standard_errors: Tree | None
    """The root of its diagonal; infinite for a variable that the residuals do not determine. None
    for method "lsmr"."""
    rank: int | None
    """The rank of J up to rounding, its columns scaled; None for method "lsmr"."""
    history: list[tuple[float, float]] = field(default_factory=list)
    """(cost, optimality) at the start and after every step."""
