# SPDX-License-Identifier: Apache-2.0
"""A public kit for testing operators, solvers and products: checks, oracles, problems and meters.

check_operator(A)                   is A what a linear operator promises to be?
dense_hessian(f, x), ...            the definition, in float64, by an independent route
all_problems()                      functions that differ in what they ask of autodiff
CountingOperator(A), PeakMemory()   contracts of cost
"""

from hesse.testing import networks, problems
from hesse.testing.catalogue import all_problems
from hesse.testing.conformance import Conformance, check_operator
from hesse.testing.counting import CountingOperator
from hesse.testing.memory import PeakMemory
from hesse.testing.oracles import (
    dense_ggn,
    dense_gradient,
    dense_hessian,
    dense_jacobian,
    finite_difference_bilinear,
    finite_difference_hessian,
)
from hesse.testing.problems import Problem

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
    "Problem",
    "all_problems",
    "networks",
    "problems",
    # meters
    "CountingOperator",
    "PeakMemory",
]

from hesse.testing.catalogue import all_problems
from hesse.testing.conformance import OperatorReport, check_operator
from hesse.testing.counting import CountingOperator, PeakMemory
from hesse.testing.networks import (
    attention,
    classifier,
    conv_net,
    embedding,
    mlp,
    multihead_attention,
    pinn,
    pinn_autograd,
    recurrent,
    tied_autoencoder,
)
from hesse.testing.oracles import (
    dense_ggn,
    dense_gradient,
    dense_hessian,
    dense_jacobian,
    finite_difference_bilinear,
    finite_difference_hessian,
)
from hesse.testing.problems import (
    Problem,
    in_place,
    linear,
    linear_in_one_leaf,
    log_determinant,
    logistic_regression,
    nested_tree,
    polynomial_sine,
    quadratic,
    rosenbrock,
    spectrum,
    stop_gradient,
    unused_leaf,
)

__all__ = [
    # checks
    "OperatorReport",
    "check_operator",
    # meters
    "CountingOperator",
    "PeakMemory",
    # oracles
    "dense_ggn",
    "dense_gradient",
    "dense_hessian",
    "dense_jacobian",
    "finite_difference_bilinear",
    "finite_difference_hessian",
    # problems
    "Problem",
    "all_problems",
    "attention",
    "classifier",
    "conv_net",
    "embedding",
    "in_place",
    "linear",
    "linear_in_one_leaf",
    "log_determinant",
    "logistic_regression",
    "mlp",
    "multihead_attention",
    "nested_tree",
    "pinn",
    "pinn_autograd",
    "polynomial_sine",
    "quadratic",
    "recurrent",
    "rosenbrock",
    "spectrum",
    "stop_gradient",
    "tied_autoencoder",
    "unused_leaf",
]
