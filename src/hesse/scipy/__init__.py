# SPDX-License-Identifier: Apache-2.0
"""The methods of `hesse.minimize` as methods of `scipy.optimize.minimize`.

`scipy.optimize.minimize(fun, x0, method=hesse.scipy.trust_krylov)` takes the arguments of SciPy:
functions of NumPy arrays with `jac` and `hessp` or `hess`; or, without `jac`, a function of a
tensor, which is differentiated.
"""

from hesse.errors import MissingExtraError

try:
    from hesse.scipy.methods import (
        cubic,
        enriched,
        lbfgs,
        newton_cg,
        newton_minres,
        trust_cg,
        trust_krylov,
    )
except ImportError as error:
    raise MissingExtraError(
        expected="SciPy, whose minimize calls these methods",
        got=str(error),
        remedy="pip install 'hesse[scipy]'",
    ) from error

__all__ = [
    "cubic",
    "enriched",
    "lbfgs",
    "newton_cg",
    "newton_minres",
    "trust_cg",
    "trust_krylov",
]
