# SPDX-License-Identifier: Apache-2.0
"""A public kit for testing operators, solvers and products: checks, oracles, problems and meters.

check_operator(A)                   is A what a linear operator promises to be?
dense_hessian(f, x), ...            the definition, in float64, by an independent route
all_problems()                      functions that differ in what they ask of autodiff
CountingOperator(A), PeakMemory()   contracts of cost
"""
