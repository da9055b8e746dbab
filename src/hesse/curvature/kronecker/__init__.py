# SPDX-License-Identifier: Apache-2.0
"""Kronecker-factored curvature: factors read off the traced program of J'u."""
