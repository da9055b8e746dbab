# SPDX-License-Identifier: Apache-2.0
"""The arguments that all implicit functions share, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.apps.implicit.adjoint import AdjointSystem
from hesse.errors import StructureError, check_callable, check_count, check_flags, check_tolerances
from hesse.krylov.auto import Auto
from hesse.krylov.method import Method
from hesse.krylov.solve import Name, as_method
from hesse.operators.algebra import LinearOperator


def system_of(
    f: Any,
    solve: Any,
    method: Name | Method | Auto,
    preconditioner: LinearOperator | Tensor | str | None,
    rtol: float,
    max_iterations: int | None,
    generator: torch.Generator | None,
    progress: bool,
    **flags: bool,
) -> AdjointSystem:
    """How adjoint systems are solved; raises for what is no function, number, method or flag."""
    check_flags(progress=progress, **flags)
    check_function("f", f)
    check_callable(solve=solve)
    check_tolerances(rtol=rtol)
    if max_iterations is not None:
        check_count("max_iterations", max_iterations, 1)
    return AdjointSystem(
        as_method(method), preconditioner, rtol, max_iterations, generator, progress
    )


def check_function(name: str, value: Any) -> None:
    """Raise unless this is a function, which must be given."""
    if not callable(value):
        raise StructureError(
            expected=f"{name} to be a function of (x, l)",
            got=f"{type(value).__module__}.{type(value).__name__}",
            remedy="Give a function of two arguments, each a tensor or a tree of tensors.",
        )
