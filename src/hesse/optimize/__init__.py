# SPDX-License-Identifier: Apache-2.0
"""Minimisation with curvature: one loop; a descent proposes a step, a search accepts or rejects it.

A *descent* computes a step from gradient and curvature at a point (`TruncatedNewton`,
`DampedGaussNewton`). A *search* accepts a step, shortens it or rejects it, and keeps the scalar
that the next proposal depends on: a radius (`TrustRadius`), a damping (`LevenbergMarquardt`), or
none (`ArmijoSearch`). A method is a pair of the two.
"""

from hesse.optimize.hessian_free import HessianFree
from hesse.optimize.least_squares import least_squares
from hesse.optimize.minimize import minimize
from hesse.optimize.result import OptimizeResult
from hesse.optimize.squares.result import LeastSquaresResult

__all__ = ["HessianFree", "LeastSquaresResult", "OptimizeResult", "least_squares", "minimize"]
