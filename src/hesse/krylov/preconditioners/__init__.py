# SPDX-License-Identifier: Apache-2.0
"""Preconditioners: operators M close to the inverse of A, from a few products, one method a file.

jacobi              the diagonal: for variables of different scales; elsewhere, as in many
                    networks, CG may take more iterations with it
block_jacobi        the diagonal blocks: for groups of variables that are strongly coupled
nystrom             the large eigenvalues: for a spectrum that falls fast, with damping
pivoted_cholesky    a few columns: as nystrom, for a matrix whose diagonal is known
quasi_newton        the steps of an earlier run with a similar matrix; takes no products

Each is symmetric positive definite by construction; `products` is the number that it took.
"""

from hesse.krylov.preconditioners.block_jacobi import block_jacobi
from hesse.krylov.preconditioners.choose import as_preconditioner
from hesse.krylov.preconditioners.jacobi import jacobi
from hesse.krylov.preconditioners.nystrom import nystrom
from hesse.krylov.preconditioners.pivoted_cholesky import pivoted_cholesky
from hesse.krylov.preconditioners.preconditioner import Preconditioner
from hesse.krylov.preconditioners.quasi_newton import Pairs, quasi_newton

__all__ = [
    "Pairs",
    "Preconditioner",
    "as_preconditioner",
    "block_jacobi",
    "jacobi",
    "nystrom",
    "pivoted_cholesky",
    "quasi_newton",
]
