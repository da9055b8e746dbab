# SPDX-License-Identifier: Apache-2.0
"""The system H p = -g of a Newton step, as the iterative methods solve it."""

from __future__ import annotations

from typing import Any

from hesse.krylov.system import System
from hesse.optimize.method import Setting
from hesse.optimize.point import Point, unit_for


def newton_system(point: Point, setting: Setting, **options: Any) -> System:
    """H p = -g with the preconditioner of the setting, and with further options of `System`.

    It is multiplied by a unit where the gradient is extreme: see `unit_for`.
    """
    unit = unit_for(point.gradient_norm)
    return System(
        point.curvature if unit == 1.0 else unit * point.curvature,
        -unit * point.gradient,
        preconditioner=setting.preconditioner,
        **options,
    )
