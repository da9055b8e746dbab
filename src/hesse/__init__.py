# SPDX-License-Identifier: Apache-2.0
"""Hesse: the Hessian-vector product as a first-class operation in PyTorch.

Parameters are vectors; automatic differentiation gives products that are linear in a direction; a
product prepared at a point is an operator; operators are solved and measured; solutions make steps;
steps and solutions make applications.
"""

from hesse import testing
from hesse.ad import hvp
from hesse.errors import HesseError, Status
from hesse.estimators import Estimate, SpectralDensity, spectral_density, trace
from hesse.krylov import Eigenpairs, Solution, eigsh, solve
from hesse.operators import (
    LinearOperator,
    aslinearoperator,
    dense_operator,
    diagonal_operator,
    function_operator,
    ggn_operator,
    hessian_operator,
    identity_operator,
)
from hesse.optimize import HessianFree, OptimizeResult, minimize
from hesse.risk import Risk
from hesse.vectors import Space

__version__ = "0.1.0.dev0"

__all__ = [
    "Eigenpairs",
    "Estimate",
    "HesseError",
    "HessianFree",
    "LinearOperator",
    "OptimizeResult",
    "Risk",
    "Solution",
    "Space",
    "SpectralDensity",
    "Status",
    "aslinearoperator",
    "dense_operator",
    "diagonal_operator",
    "eigsh",
    "function_operator",
    "ggn_operator",
    "hessian_operator",
    "hvp",
    "identity_operator",
    "minimize",
    "solve",
    "spectral_density",
    "testing",
    "trace",
]
