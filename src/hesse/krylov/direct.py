# SPDX-License-Identifier: Apache-2.0
"""Exact inverses of operators whose structure has one.

The residual of the solution is recomputed, as after an iteration, and refined with the same inverse
while that helps (Wilkinson's iterative refinement).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from hesse.errors import OperatorError, Status
from hesse.krylov.columns import solve_columns
from hesse.krylov.method import Method
from hesse.krylov.solution import Solution
from hesse.krylov.system import SolverState, System, iterate, solution_of
from hesse.operators.algebra import LinearOperator


@dataclass(frozen=True, repr=False)
class Direct(Method):
    """The exact inverse where the structure of A gives one: dense, diagonal, Kronecker, ...

    x = A^-1 b is refined until the recomputed residual stops falling.

    Cost: one product for each recomputed residual, usually one; three vectors beside the inverse.

    Raises:
        HesseError: A without a cheap inverse, or singular.

    >>> import torch
    >>> from hesse.krylov import solve
    >>> solve(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([2.0, 3.0]), Direct()).x
    tensor([3., 1.])
    """

    name: ClassVar[str] = "direct"

    def solve_system(self, system: System) -> Solution:
        """The solution for b, or for all columns of a block, by one inverse."""
        inverse = system.A._inverse()
        if inverse is None:
            raise OperatorError(
                expected="an operator whose structure gives its inverse (and that is not singular)",
                got=f"{system.A._title()}, which has none",
                remedy="Leave out the method; for a small operator pass A.to_dense().",
            )
        return self.solve_with(inverse, system)

    def solve_with(self, inverse: LinearOperator, system: System) -> Solution:
        """As `solve_system`, by an inverse that is known already."""
        return solve_columns(partial(self._refined, inverse), system)

    def _solve(self, system: System) -> Solution:
        return self.solve_system(system)

    def _refined(self, inverse: LinearOperator, system: System) -> Solution:
        space, size = system.A.domain, system.b_norm
        state = SolverState(space.zeros(), system.b.clone(), size, history=[size])

        def correct() -> Status:
            if state.residual_norm == 0.0:
                return Status.CONVERGED
            if state.iteration >= system.limit:
                return Status.MAX_ITERATIONS
            if not system.run.allows(state, 0):
                return system.run.status
            state.x = state.x + inverse._matvec(state.residual)
            state.iteration += 1
            return Status.CONVERGED if space.all_finite(state.x) else Status.NOT_FINITE

        iterate(system, state, correct)
        return solution_of(state, self.name)
