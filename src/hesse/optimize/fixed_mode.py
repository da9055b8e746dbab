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

    Cost: one product, if there is a choice. Whatever is traced for it is there for all later
    operators of the function, so that none of them takes its first products in another way.
    """
    for mode in modes[:-1]:
        with deterministic():
            operator = make(mode)
        try:
            operator._matvec(operator.domain.gaussian(torch.Generator().manual_seed(0)))
        except (DerivativeError, NotImplementedError):
            continue
        return operator, mode
    with deterministic():
        return make(modes[-1]), modes[-1]
