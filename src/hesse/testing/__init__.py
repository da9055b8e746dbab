# SPDX-License-Identifier: Apache-2.0
"""A public kit for testing operators, solvers and products: checks, oracles, problems and meters.

check_operator(A)                   is A what a linear operator promises to be?
dense_hessian(f, x), ...            the definition, in float64, by an independent route
all_problems()                      functions that differ in what they ask of autodiff
smooth_problems()                   functions to minimise, with starts and known minima
CountingOperator(A), PeakMemory()   contracts of cost
Traffic()                           what a process sends to others
"""

from hesse.memory.peak import PeakMemory
from hesse.testing import likelihoods, networks, problems
from hesse.testing.catalogue import all_problems
from hesse.testing.conformance import Conformance, check_operator
from hesse.testing.counting import CountingOperator
from hesse.testing.matrices import symmetric_matrix
from hesse.testing.oracles import (
    dense_ggn,
    dense_gradient,
    dense_hessian,
    dense_jacobian,
    finite_difference_bilinear,
    finite_difference_hessian,
)
from hesse.testing.problems import Problem
from hesse.testing.smooth import more_garbow_hillstrom, smooth_problems
from hesse.testing.traffic import Traffic

__all__ = [
    # checks
    "Conformance",
    "check_operator",
    # oracles
    "dense_gradient",
    "dense_hessian",
    "dense_jacobian",
    "dense_ggn",
    "finite_difference_bilinear",
    "finite_difference_hessian",
    # problems
    "symmetric_matrix",
    "Problem",
    "all_problems",
    "likelihoods",
    "more_garbow_hillstrom",
    "smooth_problems",
    "networks",
    "problems",
    # meters
    "CountingOperator",
    "PeakMemory",
    "Traffic",
]
