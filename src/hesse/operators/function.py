# SPDX-License-Identifier: Apache-2.0
"""A function v -> A v that a user wrote, as an operator that notices what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hesse.errors import OperatorError
from hesse.operators.algebra import LinearOperator
from hesse.operators.function_checks import FunctionChecks
from hesse.surroundings import users_contexts
from hesse.vectors.aliasing import PrivateResults, num_writes
from hesse.vectors.space import Space


class FunctionOperator(LinearOperator):
    """A function v -> A v as an operator."""

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        domain: Space,
        codomain: Space,
        symmetric: bool,
        rmatvec: Callable[[Tensor], Tensor] | None,
    ) -> None:
        super().__init__(domain, codomain, symmetric=symmetric)
        self._given, self._adjoint = matvec, rmatvec
        self._results, self._adjoint_results = PrivateResults(), PrivateResults()
        self._checks = FunctionChecks(domain, codomain, self._product, symmetric=symmetric)

    def __reduce__(self):  # a copy looks at its products again
        return FunctionOperator, (
            *(self._given, self.domain, self.codomain, self.symmetric, self._adjoint),
        )

    def _matvec(self, v: Tensor) -> Tensor:
        c = self._checks.stretch
        product = self._product(v) if c == 1.0 else self._product(c * v) / c
        self._checks.see_product(v, product)
        return product

    def _rmatvec(self, u: Tensor) -> Tensor:
        if self._adjoint is None:
            return super()._rmatvec(u)
        result = _called(self._adjoint, u, "rmatvec(u)", self.domain, self._adjoint_results)
        self._checks.see_adjoint(u, result)
        return result

    def _product(self, v: Tensor) -> Tensor:
        return _called(self._given, v, "matvec(v)", self.codomain, self._results)


def _called(
    function: Callable[[Tensor], Tensor],
    v: Tensor,
    what: str,
    space: Space,
    results: PrivateResults,
) -> Tensor:
    """function(v), a vector of this space in memory that the function does not write to again."""
    before = num_writes(v)
    with users_contexts():
        result = function(v)
    if num_writes(v) != before:
        raise OperatorError(
            expected=f"{what} to leave its argument as it is",
            got="one that writes to it",
            remedy="Write to a copy: v.clone().",
        )
    return results.private(space.check_vector(result, what=what).detach(), v)
