# SPDX-License-Identifier: Apache-2.0
"""How the change of the parameters is found: ridge systems, least squares, gradient flow.

Each takes J' f(J J' + rho I) r, which equals f(J'J + rho I) J'r: in the space with fewer entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.apps.kernels.ntk import num_outputs
from hesse.apps.kernels.preconditioner import sketched, trace_kernel_preconditioner
from hesse.errors import ArgumentError, Status
from hesse.estimators.matrix_function import matrix_function
from hesse.krylov.lsmr import LSMR
from hesse.krylov.preconditioners import Preconditioner
from hesse.krylov.solve import solve
from hesse.operators.algebra import LinearOperator
from hesse.operators.diagonal import IdentityOperator
from hesse.progress import FilePath


@dataclass(frozen=True)
class Change:
    """theta - theta_0, and how it was found."""

    change: Tensor
    products: int
    status: Status
    converged: bool


@dataclass(frozen=True)
class Step:
    """J, r = Y - f_0, the ridge, and the limits of the iteration."""

    J: LinearOperator
    r: Tensor
    ridge: float
    rtol: float
    max_products: int | None
    generator: torch.Generator | None
    progress: bool
    checkpoint: FilePath = None

    @property
    def in_outputs(self) -> bool:
        """Whether there are fewer outputs than parameters."""
        return self.J.shape[0] < self.J.shape[1]

    @property
    def system(self) -> tuple[LinearOperator, Tensor]:
        """(J J', r) or (J'J, J'r): the matrix, without the ridge, and the right-hand side."""
        J = self.J
        return (J @ J.T, self.r) if self.in_outputs else (J.T @ J, J._rmatvec(self.r))

    def back(self, x: Tensor) -> Tensor:
        """The change of the parameters that a solution stands for."""
        return self.J._rmatvec(x) if self.in_outputs else x

    @property
    def limits(self) -> dict[str, Any]:
        """The arguments that all solvers share."""
        return {
            "rtol": self.rtol,
            "max_products": self.max_products,
            "progress": self.progress,
            "generator": self.generator,
            "checkpoint": self.checkpoint,
        }


@dataclass(frozen=True)
class Ridge:
    """(K + rho I)^-1: conjugate gradients; without a ridge least squares."""

    preconditioner: LinearOperator | Tensor | str | None

    def change(self, step: Step) -> Change:
        """J' (J J' + rho I)^-1 r."""
        if step.ridge == 0.0:
            found = solve(step.J, step.r, LSMR(), **step.limits)
            return Change(found.x, found.products, found.status, found.converged)
        A, b = step.system
        M = self._made(step, A)
        found = solve(A, b, "cg", M, damping=step.ridge, **step.limits)
        taken = M.products if isinstance(M, Preconditioner) else 0
        return Change(step.back(found.x), found.products + taken, found.status, found.converged)

    def _made(self, step: Step, A: LinearOperator) -> LinearOperator | Tensor | str | None:
        """The preconditioner, or its name where `solve` makes it."""
        name = self.preconditioner
        if not isinstance(name, str):
            return name
        several = step.in_outputs and num_outputs(step.J) > 1
        if name == "trace-kernel" and not step.in_outputs:
            raise ArgumentError(
                expected="more parameters than outputs for preconditioner='trace-kernel'",
                got=f"{step.J.shape[1]} parameters and {step.J.shape[0]} outputs",
                remedy="Use preconditioner='auto'.",
            )
        if name == "trace-kernel" or (name == "auto" and several):
            return trace_kernel_preconditioner(step.J, step.ridge, step.generator)
        if name == "auto":
            return sketched(A, step.ridge, step.generator)
        return name


@dataclass(frozen=True)
class Flow:
    """(1 - exp(-(K + rho I) t)) (K + rho I)^-1: gradient flow for a time t."""

    time: float

    def change(self, step: Step) -> Change:
        """J' phi(J J' + rho I) r."""
        A, b = step.system
        if step.ridge > 0.0:
            A = A + step.ridge * IdentityOperator(A.domain)
        limits = {**step.limits, "basis_size": step.max_products or 200}
        limits.pop("checkpoint")  # refused before: `matrix_function` takes some products only
        found = matrix_function(self._phi, A, b, **limits)
        converged = found.status is Status.CONVERGED
        return Change(step.back(found.value), found.products, found.status, converged)

    def _phi(self, values: Tensor) -> Tensor:
        """(1 - exp(-v t)) / v, which is t at 0."""
        tiny = values.abs() * self.time < 1e-12
        safe = values.where(~tiny, 1.0)
        return torch.where(tiny, self.time, -torch.expm1(-safe * self.time) / safe)
