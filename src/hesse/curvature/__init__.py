# SPDX-License-Identifier: Apache-2.0
"""Curvature matrices as operators: the Hessian and the generalised Gauss-Newton matrix."""

from hesse.curvature.hvp import HVP, hvp
from hesse.curvature.operator import (
    GaussNewtonOperator,
    HessianOperator,
    ggn_operator,
    hessian_operator,
)

__all__ = [
    "HVP",
    "GaussNewtonOperator",
    "HessianOperator",
    "ggn_operator",
    "hessian_operator",
    "hvp",
]
