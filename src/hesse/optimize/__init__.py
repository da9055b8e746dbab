# SPDX-License-Identifier: Apache-2.0
"""Minimisation with curvature: one loop; descents propose steps, searches judge them.

A *descent* turns the function's information at a point into a step (`TruncatedNewton`,
`DampedGaussNewton`); a *search* turns a proposed step into an accepted one and keeps the scalar
that
the next proposal depends on: a step length (`ArmijoSearch`), a radius (`TrustRadius`), a damping
(`LevenbergMarquardt`). The methods are pairs of the two.
"""

from hesse.optimize.hessian_free import HessianFree
from hesse.optimize.minimize import OptimizeResult, minimize

__all__ = ["HessianFree", "OptimizeResult", "minimize"]
