# SPDX-License-Identifier: Apache-2.0
"""Curvature matrices as operators: Hessian (sparse too), Gauss-Newton matrix, Jacobian."""

from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.hvp import HVP, hvp
from hesse.curvature.jacobian import jacobian_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_hessian import sparse_hessian_operator
from hesse.engine.cost_model import deterministic

__all__ = [
    "HVP",
    "CurvatureOperator",
    "deterministic",
    "ggn_operator",
    "hessian_operator",
    "hvp",
    "jacobian_operator",
    "sparse_hessian_operator",
]
