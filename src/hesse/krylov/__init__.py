# SPDX-License-Identifier: Apache-2.0
"""Krylov methods, one a file. They see products and inner products, never models or data."""

from hesse.krylov.cg import cg
from hesse.krylov.eigsh import Eigenpairs, eigsh
from hesse.krylov.solution import Solution
from hesse.krylov.solve import solve

__all__ = ["Eigenpairs", "Solution", "cg", "eigsh", "solve"]
