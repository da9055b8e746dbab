# SPDX-License-Identifier: Apache-2.0
"""By which a checkpoint recognises f beyond its Hessian: what f is to first order at a point."""

from __future__ import annotations

from hesse.curvature.operator import CurvatureOperator
from hesse.operators.diagonal import DiagonalOperator


def first_order(H: CurvatureOperator) -> DiagonalOperator:
    """The gradient of f at the point of H plus its value, as an operator.

    A sum, since at a minimum the gradient alone is rounding.
    """
    return DiagonalOperator(H.domain, H.flat_gradient + H.value)
