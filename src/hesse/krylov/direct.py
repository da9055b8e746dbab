# SPDX-License-Identifier: Apache-2.0
"""Exact inverses where the structure of an operator has one, and nothing said without looking.

The solution is put to the test like that of an iteration: its residual is recomputed, and refined
with the same inverse while that helps (Wilkinson's iterative refinement).
"""

from __future__ import annotations

from hesse.errors import OperatorError, Status
from hesse.krylov.solution import Solution
from hesse.krylov.system import SolverState, System, iterate, solution_of
from hesse.operators.algebra import LinearOperator
from hesse.vectors.inner_products import norm


def direct(system: System, inverse: LinearOperator | None) -> Solution:
    """x = A^-1 b, refined until the recomputed residual stops falling.

    Cost: one product for each look at the residual, usually one; three vectors beside the inverse.
    """
    if inverse is None:
        raise OperatorError(
            f"hesse.solve({system.A}, b, method='direct')",
            expected="an operator whose structure gives its inverse (and that is not singular)",
            got=f"a {type(system.A).__name__} without one",
            remedy="Leave out the method; for a small operator pass A.to_dense().",
        )
    residual = system.b.clone()
    state = SolverState(system.A.domain.zeros(), residual, norm(residual), history=[system.b_norm])

    def correct() -> Status:
        if state.residual_norm == 0.0 or state.iteration >= system.limit:
            return Status.CONVERGED if state.residual_norm == 0.0 else Status.MAX_ITERATIONS
        if not system.run.allows(state, 0):
            return system.run.status
        state.x = state.x + inverse._matvec(state.residual)
        state.iteration += 1
        return Status.CONVERGED if bool(state.x.isfinite().all()) else Status.NOT_FINITE

    iterate(system, state, correct)
    return solution_of(state, "direct")
