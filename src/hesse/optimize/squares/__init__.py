# SPDX-License-Identifier: Apache-2.0
"""Nonlinear least squares: the parts of `hesse.least_squares`.

A `ResidualPoint` has residuals and a Jacobian, weighted by a `RobustLoss`. One factorisation of the
Jacobian gives a `StepFamily`: the minimiser of the linear model within every trust radius. Where
residuals stay large a `NewtonFamily` takes its place. A `RadiusSearch` picks one of the steps by
the true cost, within a `Box`, and `Fit` is the loop around it.
"""
