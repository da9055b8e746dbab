# SPDX-License-Identifier: Apache-2.0
"""Minimisation with curvature: one loop; a descent proposes a step, a search accepts or rejects it.

A *descent* computes a step from gradient and curvature at a point (`TruncatedNewton`,
`KrylovDescent`, `DampedGaussNewton`). A *search* accepts a step, shortens it or rejects it, and
keeps the scalar that the next proposal depends on: a radius (`TrustRadius`), a weight
(`Regularisation`), a damping (`LevenbergMarquardt`), or none (`ArmijoSearch`). A method is a pair
of the two; as the argument of `minimize` it is an object, such as `TrustKrylov()`.
"""

from hesse.optimize.cubic import Cubic
from hesse.optimize.enriched import Enriched
from hesse.optimize.growing_share import Growing
from hesse.optimize.hessian_free import HessianFree
from hesse.optimize.lbfgs import LBFGS
from hesse.optimize.least_squares import least_squares
from hesse.optimize.minimize import minimize
from hesse.optimize.newton_direct import NewtonDirect
from hesse.optimize.newton_minres import NewtonMINRES
from hesse.optimize.result import OptimizeResult
from hesse.optimize.sparse_init import sparse_init_
from hesse.optimize.squares.result import LeastSquaresResult
from hesse.optimize.truncated_newton import NewtonCG, TrustCG
from hesse.optimize.trust_krylov import TrustKrylov

__all__ = [
    "Cubic",
    "Enriched",
    "Growing",
    "HessianFree",
    "LBFGS",
    "LeastSquaresResult",
    "NewtonCG",
    "NewtonDirect",
    "NewtonMINRES",
    "OptimizeResult",
    "TrustCG",
    "TrustKrylov",
    "least_squares",
    "minimize",
    "sparse_init_",
]
