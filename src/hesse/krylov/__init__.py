# SPDX-License-Identifier: Apache-2.0
"""Krylov methods, one a file. They see products and inner products, never models or data.

A method with options is an object, `solve(A, b, GMRES(restart=50))`; its name stands for the
default one.
"""

from hesse.krylov.block_cg import BlockCG
from hesse.krylov.cg import CG
from hesse.krylov.direct import Direct
from hesse.krylov.eigenpairs import Eigenpairs
from hesse.krylov.eigsh import eigsh
from hesse.krylov.gmres import GMRES
from hesse.krylov.inverse import inverse_operator
from hesse.krylov.lanczos import Lanczos
from hesse.krylov.lobpcg import LOBPCG
from hesse.krylov.lsmr import LSMR
from hesse.krylov.minres import MINRES
from hesse.krylov.multi_shift_cg import MultiShiftCG
from hesse.krylov.nystrom import nystrom_operator
from hesse.krylov.solution import Solution
from hesse.krylov.solve import solve
from hesse.krylov.svds import SingularTriplets, svds

__all__ = [
    "BlockCG",
    "CG",
    "Direct",
    "Eigenpairs",
    "GMRES",
    "LOBPCG",
    "LSMR",
    "Lanczos",
    "MINRES",
    "MultiShiftCG",
    "SingularTriplets",
    "Solution",
    "eigsh",
    "inverse_operator",
    "nystrom_operator",
    "solve",
    "svds",
]
