# SPDX-License-Identifier: Apache-2.0
"""Matrices of known spectra in every kind of operator."""

import torch

from hesse.curvature import hessian_operator
from hesse.operators import (
    block_diagonal_operator,
    dense_operator,
    diagonal_operator,
    function_operator,
    identity_operator,
    kronecker_operator,
    low_rank_operator,
)
from hesse.testing import symmetric_matrix

DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=DOUBLE):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE).to(dtype)


def hidden(matrix, *, symmetric):
    """A matrix that shows nothing but its products."""
    other = {} if symmetric else {"rmatvec": lambda u: matrix.T @ u}
    m, n = matrix.shape
    return function_operator(
        lambda v: matrix @ v, n, m, symmetric=symmetric, dtype=matrix.dtype, **other
    )


N = 24
DEFINITE = torch.linspace(1.0, 6.0, N)
INDEFINITE = torch.cat([-DEFINITE[: N // 3], DEFINITE[N // 3 :]])


def kinds(dtype):
    """(kind, operator) of symmetric positive definite operators of dimension 24."""
    M = symmetric_matrix(DEFINITE, dtype=dtype)
    U = normal(N, 3, seed=1, dtype=dtype) / 5
    d, unknown = torch.linspace(1.0, 3.0, N, dtype=dtype), hidden(M, symmetric=False)
    A, B = (
        symmetric_matrix(torch.linspace(1, 2, 4), dtype=dtype),
        symmetric_matrix(torch.linspace(1, 3, 6), dtype=dtype),
    )
    return {
        "dense": dense_operator(M),
        "hidden": hidden(M, symmetric=True),
        "function": function_operator(lambda v: M @ v, N, symmetric=True, dtype=dtype),
        "diagonal": diagonal_operator(d),
        "identity": 2.0 * identity_operator(N, dtype),
        "sum": dense_operator(M) + 0.5 * identity_operator(N),
        "low rank": low_rank_operator(U, torch.ones(3, dtype=dtype)) + identity_operator(N),
        "blocks": block_diagonal_operator(
            [A, symmetric_matrix(torch.linspace(1, 2, 20), dtype=dtype)]
        ),
        "kronecker": kronecker_operator(A, B),
        "gram": unknown.T @ unknown,
        "hessian": hessian_operator(lambda x: 0.5 * x @ (M @ x), d),
    }
