# SPDX-License-Identifier: Apache-2.0
"""A function of the eigenvalues of a Lanczos matrix, which must be in its domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from hesse.errors import FunctionError, OperatorError, check_choice
from hesse.krylov.lanczos_process import LanczosProcess
from hesse.krylov.rounding import unit_roundoff
from hesse.operators.algebra import LinearOperator

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


class RitzFunction:
    """A function by its name, or one of a float64 tensor, entry by entry, that a user gave."""

    def __init__(self, fun: Name | Callable[[Tensor], Tensor]) -> None:
        if not callable(fun):
            check_choice("fun", fun, get_args(Name))
        self.fun = fun

    def first_column(self, lanczos: LanczosProcess) -> Tensor:
        """f(T) e_1."""
        values, coordinates, _ = lanczos.ritz()
        rounding = 10 * unit_roundoff(lanczos.A) * float(values.abs().max())
        f = self._at(values, rounding)
        return coordinates @ (f * coordinates[0])

    def of(self, A: LinearOperator) -> LinearOperator | None:
        """f(A), where the structure of A gives it."""

        def of_eigenvalues(values: Tensor) -> Tensor:
            rounding = 10 * unit_roundoff(A) * float(values.abs().max())
            return self._checked(self._at(values, rounding), values)

        return A._function(of_eigenvalues) if A.is_structured and A.symmetric else None

    def _at(self, values: Tensor, rounding: float) -> Tensor:
        if not isinstance(self.fun, str):
            return self._checked(self.fun(values), values)
        smallest = float(values.min())
        if self.fun == "sqrt" and smallest >= -rounding:
            values = values.clamp(min=0.0)  # they are zero to rounding
        elif self.fun in ("sqrt", *_POSITIVE) and smallest <= rounding:
            semi = "semi-" if self.fun == "sqrt" else ""
            raise OperatorError(
                expected=f"a positive {semi}definite operator",
                got=f"a Ritz value of {smallest:.3g}",
                remedy="Add damping, A + c * hesse.identity_operator(n), or take another function.",
            )
        return _FUNCTIONS[self.fun](values)

    def _checked(self, f: Tensor, values: Tensor) -> Tensor:
        """The values of a user's function, if they are a finite number for each Ritz value."""
        if isinstance(f, Tensor) and f.shape == values.shape and bool(torch.isfinite(f).all()):
            return f
        got = f"{f.tolist()} for {values.tolist()}" if isinstance(f, Tensor) else repr(f)
        raise FunctionError(
            expected="fun to give a finite number for each entry of a tensor of Ritz values",
            got=got if len(got) <= 200 else f"{got[:200]}...",
            remedy="Give a function of tensors that is defined on the spectrum of A.",
        )
