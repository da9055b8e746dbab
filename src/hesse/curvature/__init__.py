# SPDX-License-Identifier: Apache-2.0
"""Curvature matrices as operators: Hessian, Gauss-Newton, Fisher, Jacobian, and others."""

from hesse.curvature.dry_run import DryRun, plan
from hesse.curvature.fisher import fisher_operator, gradient_covariance_operator
from hesse.curvature.gauss_newton import ggn_operator
from hesse.curvature.hessian import hessian_operator
from hesse.curvature.hvp import HVP, hvp
from hesse.curvature.jacobian import jacobian_operator
from hesse.curvature.kfac import ekfac_operator, kfac_operator, load_kfac
from hesse.curvature.kronecker.coverage import Coverage
from hesse.curvature.kronecker.operator import KroneckerCurvature
from hesse.curvature.ntk import ntk_operator
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_hessian import sparse_hessian_operator
from hesse.engine.cost_model import deterministic

__all__ = [
    "HVP",
    "Coverage",
    "CurvatureOperator",
    "DryRun",
    "KroneckerCurvature",
    "deterministic",
    "ekfac_operator",
    "fisher_operator",
    "ggn_operator",
    "gradient_covariance_operator",
    "hessian_operator",
    "hvp",
    "jacobian_operator",
    "kfac_operator",
    "load_kfac",
    "ntk_operator",
    "plan",
    "sparse_hessian_operator",
]
