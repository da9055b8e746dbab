# SPDX-License-Identifier: Apache-2.0
"""Matrices that are hard without a preconditioner, and counts of iterations."""

import torch

from hesse.krylov import solve
from hesse.operators import (
    function_operator,
    identity_operator,
)
from hesse.testing import CountingOperator, symmetric_matrix

DOUBLE = torch.float64
N = 40


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(seed, n=N):
    return torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE))[0]


def decaying(n=N, dtype=DOUBLE):
    """Eigenvalues 2^-k: n of them, most of them negligible."""
    return symmetric_matrix(0.5 ** torch.arange(n, dtype=DOUBLE), dtype=dtype)


def hidden(matrix):
    """The matrix as a function: no diagonal, no inverse, only products; and their count."""
    n = len(matrix)
    return CountingOperator(
        function_operator(lambda v: matrix @ v, n, symmetric=True, dtype=matrix.dtype)
    )


def damped(A, damping):
    return A + damping * identity_operator(A.shape[0])


def iterations(A, M=None, rtol=1e-8):
    b = torch.randn(A.shape[0], generator=seeded(9), dtype=DOUBLE).to(A.dtype)
    solution = solve(A, b, "cg", preconditioner=M, rtol=rtol)
    assert solution.converged
    return solution.iterations


def pairs_of(matrix, count, seed=0):
    S = torch.randn(count, len(matrix), generator=seeded(seed), dtype=DOUBLE).to(matrix.dtype)
    return [(s, matrix @ s) for s in S]
