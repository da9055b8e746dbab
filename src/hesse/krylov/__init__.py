# SPDX-License-Identifier: Apache-2.0
"""Krylov methods, one a file. They see products and inner products, never models or data."""

from hesse.krylov.cg import cg
from hesse.krylov.eigenpairs import Eigenpairs
from hesse.krylov.eigsh import eigsh
from hesse.krylov.inverse import inverse_operator
from hesse.krylov.solution import Solution
from hesse.krylov.solve import solve
from hesse.krylov.svds import SingularTriplets, svds

__all__ = [
    "Eigenpairs",
    "SingularTriplets",
    "Solution",
    "cg",
    "eigsh",
    "inverse_operator",
    "solve",
    "svds",
]
