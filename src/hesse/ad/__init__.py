# SPDX-License-Identifier: Apache-2.0
"""Products by automatic differentiation, and their preparation at a point.

Every product here is a function of (f, x, v) that is linear in v. One-shot products evaluate f
anew; a prepared product keeps the graph of the gradient at x and pays only for the part that
depends on v.
"""

from hesse.ad.gauss_newton import RetainedGaussNewton
from hesse.ad.hessian_at import HessianAt, HessianMode
from hesse.ad.hvp import HVP, hvp

__all__ = ["HVP", "HessianAt", "HessianMode", "RetainedGaussNewton", "hvp"]
