# SPDX-License-Identifier: Apache-2.0
"""Hesse: the Hessian-vector product as a first-class operation in PyTorch.

Vectors have operators; operators are solved and measured. Functions are differentiated, traced and
partitioned; a product at a point is a curvature operator. Curvature operators make steps, and steps
make applications.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hesse import apps, testing
    from hesse import distributed as distributed
    from hesse import scipy as scipy
    from hesse.curvature import (
        CurvatureOperator,
        deterministic,
        ekfac_operator,
        fisher_operator,
        fisher_root_operator,
        ggn_operator,
        gradient_covariance_operator,
        hessian_operator,
        hvp,
        jacobian_operator,
        kfac_operator,
        load_kfac,
        ntk_operator,
        plan,
        sparse_hessian_operator,
    )
    from hesse.errors import HesseError, Status
    from hesse.estimators import (
        Estimate,
        Hutchinson,
        HutchPP,
        KernelPolynomial,
        LanczosDensity,
        SpectralDensity,
        XDiag,
        XNysTrace,
        XTrace,
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
        CG,
        GMRES,
        LOBPCG,
        LSMR,
        MINRES,
        BlockCG,
        Direct,
        Eigenpairs,
        Lanczos,
        MultiShiftCG,
        SingularTriplets,
        Solution,
        eigsh,
        inverse_operator,
        nystrom_operator,
        solve,
        svds,
    )
    from hesse.operators import (
        LinearOperator,
        aslinearoperator,
        block_diagonal_operator,
        complement_operator,
        dense_operator,
        diagonal_operator,
        function_operator,
        identity_operator,
        kronecker_operator,
        low_rank_operator,
    )
    from hesse.optimize import (
        LBFGS,
        Cubic,
        Enriched,
        Growing,
        HessianFree,
        LeastSquaresResult,
        NewtonCG,
        NewtonDirect,
        NewtonMINRES,
        OptimizeResult,
        TrustCG,
        TrustKrylov,
        least_squares,
        minimize,
        sparse_init_,
    )
    from hesse.risk import Risk
    from hesse.vectors import Space

__version__ = "0.1.0.dev0"

__all__ = [
    "BlockCG",
    "CG",
    "Cubic",
    "CurvatureOperator",
    "Direct",
    "Eigenpairs",
    "Enriched",
    "Estimate",
    "GMRES",
    "HesseError",
    "Growing",
    "HessianFree",
    "HutchPP",
    "Hutchinson",
    "KernelPolynomial",
    "LBFGS",
    "LOBPCG",
    "LSMR",
    "Lanczos",
    "LanczosDensity",
    "LeastSquaresResult",
    "LinearOperator",
    "MINRES",
    "MultiShiftCG",
    "NewtonCG",
    "NewtonDirect",
    "NewtonMINRES",
    "OptimizeResult",
    "Risk",
    "SingularTriplets",
    "Solution",
    "Space",
    "SpectralDensity",
    "Status",
    "TrustCG",
    "TrustKrylov",
    "XDiag",
    "XNysTrace",
    "XTrace",
    "apps",
    "aslinearoperator",
    "block_diagonal_operator",
    "complement_operator",
    "count_eigenvalues",
    "dense_operator",
    "deterministic",
    "diagonal",
    "diagonal_operator",
    "eigsh",
    "ekfac_operator",
    "fisher_operator",
    "fisher_root_operator",
    "function_operator",
    "ggn_operator",
    "gradient_covariance_operator",
    "hessian_operator",
    "hvp",
    "identity_operator",
    "inverse_operator",
    "jacobian_operator",
    "kfac_operator",
    "kronecker_operator",
    "least_squares",
    "load_kfac",
    "logdet",
    "low_rank_operator",
    "matrix_function",
    "minimize",
    "norm",
    "ntk_operator",
    "nystrom_operator",
    "plan",
    "sample_normal",
    "solve",
    "sparse_hessian_operator",
    "sparse_init_",
    "spectral_density",
    "svds",
    "testing",
    "trace",
]

# In the order in which they build on one another. A package is imported when a public name is first
# used that none before it has: linear algebra is there without automatic differentiation or models.
_PACKAGES = ["errors", "vectors", "operators", "krylov", "estimators"]
_PACKAGES += ["risk", "curvature", "optimize"]


def __getattr__(name: str) -> Any:
    """A public name, from the package that it lives in."""
    if name in ("apps", "distributed", "scipy", "testing"):
        return import_module(f"hesse.{name}")
    if name in __all__:
        for package in map(import_module, (f"hesse.{package}" for package in _PACKAGES)):
            if name in package.__all__:
                return globals().setdefault(name, getattr(package, name))
    raise AttributeError(f"module 'hesse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
