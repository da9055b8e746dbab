# SPDX-License-Identifier: Apache-2.0
"""Hesse: the Hessian-vector product as a first-class operation in PyTorch.

Parameters are vectors; automatic differentiation gives products that are linear in a direction; a
product prepared at a point is an operator; operators are solved and measured; solutions make steps;
steps and solutions make applications.
"""

from hesse import testing
from hesse.ad import hvp
from hesse.errors import HesseError, Status
from hesse.estimators import (
    Estimate,
    SpectralDensity,
    count_eigenvalues,
    diagonal,
    logdet,
    matrix_function,
    norm,
    sample_normal,
    spectral_density,
    trace,
)
from hesse.krylov import (
    Eigenpairs,
    SingularTriplets,
    Solution,
    eigsh,
    inverse_operator,
    solve,
    svds,
)
from hesse.operators import (
    LinearOperator,
    aslinearoperator,
    block_diagonal_operator,
    dense_operator,
    diagonal_operator,
    function_operator,
    ggn_operator,
    hessian_operator,
    identity_operator,
    kronecker_operator,
    low_rank_operator,
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
    "SingularTriplets",
    "Solution",
    "Space",
    "SpectralDensity",
    "Status",
    "aslinearoperator",
    "block_diagonal_operator",
    "count_eigenvalues",
    "dense_operator",
    "diagonal",
    "diagonal_operator",
    "eigsh",
    "function_operator",
    "ggn_operator",
    "hessian_operator",
    "hvp",
    "identity_operator",
    "inverse_operator",
    "kronecker_operator",
    "logdet",
    "low_rank_operator",
    "matrix_function",
    "minimize",
    "norm",
    "sample_normal",
    "solve",
    "spectral_density",
    "svds",
    "testing",
    "trace",
]
