# SPDX-License-Identifier: Apache-2.0
"""Checks of the arguments of `HessianFree`."""

from __future__ import annotations

from typing import Any

from torch import nn

from hesse.errors import ArgumentError, check_positive
from hesse.risk.risk import Risk
from hesse.risk.sharing import check_is_whole


def model_of(risk: Any) -> nn.Module:
    """The module whose parameters are trained."""
    if isinstance(risk, Risk) and isinstance(risk.model, nn.Module):
        check_is_whole(risk)
        return risk.model
    raise ArgumentError(
        expected="a hesse.Risk of an nn.Module, whose parameters are to be trained",
        got=f"a {type(risk).__name__}" + (" of a plain callable" if isinstance(risk, Risk) else ""),
        remedy="HessianFree(hesse.Risk(model, loss, data)); to minimise a function of tensors use "
        "hesse.minimize.",
    )


def check_damping(damping: float, bounds: tuple[float, float]) -> None:
    """Raise unless the damping lies within its bounds."""
    lower, upper = bounds
    check_positive(damping=damping)
    if not 0.0 < lower <= damping <= upper:
        raise ArgumentError(
            expected="0 < damping_bounds[0] <= damping <= damping_bounds[1]",
            got=f"damping={damping!r}, damping_bounds={bounds!r}",
            remedy="Choose bounds around the damping, or leave both out for the defaults.",
        )


def check_decay(cg_decay: float) -> None:
    """Raise unless this is a fraction."""
    if not 0.0 <= cg_decay <= 1.0:
        raise ArgumentError(
            expected="a number 0 <= cg_decay <= 1",
            got=repr(cg_decay),
            remedy="Leave it out for the default; 0 starts every solve from zero.",
        )
