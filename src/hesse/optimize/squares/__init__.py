# SPDX-License-Identifier: Apache-2.0
"""Nonlinear least squares: the parts of `hesse.least_squares`.

A `ResidualPoint` has residuals and a Jacobian, weighted by a `RobustLoss`. One factorisation of the
Jacobian gives a `StepFamily`: the minimiser of the linear model within every trust radius. A
`RadiusSearch` picks one of them by the true cost, within a `Box`, and `Fit` is the loop around it.
"""
