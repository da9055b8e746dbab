# SPDX-License-Identifier: Apache-2.0
"""Operators that take all products in one way, so that a run can be repeated to the same bits.

In mode "auto" measured times decide when a graph is replaced by a program, which rounds otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hesse.curvature.operator import CurvatureOperator
from hesse.engine.cost_model import deterministic
from hesse.errors import DerivativeError


def in_fixed_mode(
    make: Callable[[str], CurvatureOperator], modes: Sequence[str]
) -> tuple[CurvatureOperator, str]:
    """An operator in the first of these modes in which products can be taken, and that mode.

    Args:
        make: mode -> the operator in that mode.
        modes: at least one; what the last of them raises is raised.

    Cost: a product. What is traced for it serves all later operators of the function, so that none
    of them takes its first products in another way.
    """
    for index, mode in enumerate(modes):
        with deterministic():
            operator = make(mode)
        try:
            operator._matvec(operator.domain.gaussian(torch.Generator().manual_seed(0)))
        except DerivativeError:
            if index == len(modes) - 1:
                raise
            continue
        return operator, mode
    raise ValueError("no mode")
