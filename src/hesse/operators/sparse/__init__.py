# SPDX-License-Identifier: Apache-2.0
"""Symmetric sparse matrices: colourings of their patterns, their entries, and factorisations."""
