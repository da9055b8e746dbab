# SPDX-License-Identifier: Apache-2.0
"""Which entries of the matrix of a tangent program can differ from zero."""
