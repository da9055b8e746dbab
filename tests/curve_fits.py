# SPDX-License-Identifier: Apache-2.0
"""Problems of least squares, and their solutions by SciPy."""

from __future__ import annotations

from functools import cache

import scipy.optimize
import torch

import hesse
from hesse.testing.smooth import more_garbow_hillstrom

DOUBLE = torch.float64
TIGHT = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-12)
MGH = {p.name: p for p in more_garbow_hillstrom() if p.residuals and p.space.n <= 100}
# From the standard start these end in another minimum than SciPy's: a lower one, or with "lsmr"
# the one that More, Garbow & Hillstrom give as the second.
LOWER = {"trigonometric(n=10)": 0.0, "trigonometric(n=50)": 2 * 4.148447032e-9}


def vector(*entries):
    return torch.tensor(entries, dtype=DOUBLE)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def scipy_fit(r, x0, **options):
    """SciPy's result, with the Jacobian of torch."""

    def residuals(x):
        return r(torch.from_numpy(x)).numpy()

    def jacobian(x):
        return torch.func.jacrev(r)(torch.from_numpy(x)).numpy()

    options = {"x_scale": "jac", "max_nfev": 2000} | TIGHT | options
    return scipy.optimize.least_squares(residuals, x0.numpy(), jacobian, **options)


@cache
def fit(name):
    return hesse.least_squares(MGH[name].residuals, MGH[name].x, **TIGHT)


@cache
def scipy_fit_of(name):
    return scipy_fit(MGH[name].residuals, MGH[name].x)
