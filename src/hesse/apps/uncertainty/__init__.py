# SPDX-License-Identifier: Apache-2.0
"""Uncertainty of a trained model: the Laplace approximation."""
