# SPDX-License-Identifier: Apache-2.0
"""How exact an implicit derivative is."""

from __future__ import annotations

from dataclasses import dataclass

from hesse.errors import Status
from hesse.result import Result


@dataclass(frozen=True, repr=False)
class ImplicitReport(Result):
    """The two residuals behind an implicit derivative, and the errors that they leave.

    The derivative is that of an exact solution x and of an exact adjoint s only. Its error is about
    c |F(x, l)| + d |g - J's|, for constants of the problem that grow with the condition of J: the
    two residuals should be made small alike.
    """

    residual: float
    """|F(x, l)|; of a minimum |df/dx|, of a fixed point |x - T(x, l)|."""
    status: Status | None = None
    """How the search for x ended; None where the user's function found it."""
    min_curvature: float | None = None
    """The least curvature that was found at a minimum."""
    adjoint_residual: float | None = None
    """|g - J's|, recomputed, of the last adjoint system; None before one was solved."""
    adjoint_status: Status | None = None
    """How it ended."""
    adjoint_products: int = 0
    """Products for it."""
    products: int = 0
    """Products for all systems so far, those of the search for x excluded."""
    x_error: float | None = None
    """About |x - x*|, from a Newton step, where it was asked for."""
    gradient_error: float | None = None
    """About the norm of the error of the gradient, g held fixed, likewise: how much it changes if x
    and s are both improved by a step."""
