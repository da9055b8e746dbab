# SPDX-License-Identifier: Apache-2.0
"""Factorise a symmetric sparse matrix: P A P' = L D L', by SuperLU, or by QDLDL if it is installed.

Both take pivots from the diagonal, in an order of little fill. Then D has the inertia of A, by
Sylvester's law. Where that is not stable, which a solution shows, SuperLU exchanges rows instead,
and the inertia stays unknown.

References: Li 2005, doi:10.1145/1089014.1089017 (SuperLU); Stellato et al. 2020,
doi:10.1007/s12532-020-00179-2 (QDLDL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

# A solution is accepted up to so many units of rounding, relative to |A| |x| + |b|.
_ROUNDINGS = 1e4

# Columns that SuperLU updates together. With 20, its default, it takes 1.3 times as long for grids
# in the plane, and 2.2 times for chains.
_PANEL = 4


class Inertia(NamedTuple):
    """How many eigenvalues of a symmetric matrix are positive, and how many are negative.

    None is zero: a singular matrix has no factorisation.
    """

    positive: int
    negative: int


@dataclass(frozen=True)
class Factorisation:
    """Triangular factors of a matrix.

    Args:
        solve: b -> A^-1 b on float64 arrays of shape (n,) or (n, k).
        diagonal: gives the diagonal of D, or of U; it is asked for when it is needed.
        nnz: the entries of the factors.
        name: "SuperLU" or "QDLDL".
        exchanges: the sign of the permutations of rows and columns; None if they are one.
    """

    solve: Callable[[Any], Any]
    diagonal: Callable[[], Any]
    nnz: int
    name: str
    exchanges: int | None = None

    @cached_property
    def pivots(self) -> Any:
        """The diagonal of D, or of U."""
        return self.diagonal()

    @property
    def inertia(self) -> Inertia | None:
        """Of A; None where rows were exchanged."""
        if self.exchanges is not None:
            return None
        negative = int((self.pivots < 0).sum())
        return Inertia(len(self.pivots) - negative, negative)

    @property
    def sign(self) -> float:
        """The sign of the determinant."""
        return float(np.sign(self.pivots).prod()) * (self.exchanges or 1)

    @property
    def logabs(self) -> float:
        """The logarithm of the absolute value of the determinant."""
        return float(np.log(np.abs(self.pivots)).sum())


def factorise(matrix: Any) -> Factorisation | None:
    """The factors of a symmetric matrix; None if it is singular.

    Args:
        matrix: a symmetric sparse matrix of SciPy.

    Cost: for a grid of n points in the plane some n^(3/2) operations and n log n numbers; for one
        in space n^2 and n^(4/3).

    >>> found = factorise(sp.csr_array(np.array([[2.0, 1.0], [1.0, -3.0]])))
    >>> found.solve(np.array([3.0, -2.0])), found.inertia
    (array([1., 1.]), Inertia(positive=1, negative=1))
    """
    matrix = sp.csc_array(matrix, dtype=np.float64)
    for method in (qdldl, symmetric_superlu, pivoted_superlu):
        try:
            found = method(matrix)
        except (RuntimeError, ValueError, MemoryError):  # a zero pivot, or no room for the factors
            continue
        if found is not None and _is_accurate(matrix, found):
            return found
    return None


def _is_accurate(matrix: Any, found: Factorisation) -> bool:
    """Whether a solution has a small residual."""
    b = np.random.default_rng(0).standard_normal(matrix.shape[0])
    x = found.solve(b)
    size = float(abs(matrix).sum(axis=0).max()) * _largest(x) + _largest(b)
    error = _largest(matrix @ x - b)
    return bool(np.isfinite(size)) and error <= _ROUNDINGS * np.finfo(np.float64).eps * size


def _largest(vector: Any) -> float:
    return float(np.abs(vector).max(initial=0.0))


def qdldl(matrix: Any) -> Factorisation | None:
    """L D L' with approximate minimum degree."""
    try:
        package: Any = import_module("qdldl")
    except ImportError:
        return None
    solver = package.Solver(sp.csc_matrix(matrix))
    lower, d, _ = solver.factors()

    def solve(b: Any) -> Any:
        return solver.solve(b) if b.ndim == 1 else np.stack([*map(solver.solve, b.T)], axis=1)

    return Factorisation(solve, lambda: np.asarray(d), lower.nnz + matrix.shape[0], "QDLDL")


def symmetric_superlu(matrix: Any) -> Factorisation | None:
    """L U with pivots from the diagonal, where U = D L'; None if a pivot was none."""
    factors = splu(
        matrix,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        panel_size=_PANEL,
        options={"SymmetricMode": True, "Equil": False},
    )
    if not np.array_equal(factors.perm_r, factors.perm_c):
        return None
    return Factorisation(factors.solve, lambda: factors.U.diagonal(), factors.nnz, "SuperLU")


def pivoted_superlu(matrix: Any) -> Factorisation:
    """P A Q = L U with exchanges of rows."""
    factors = splu(matrix)
    sign = _parity(factors.perm_r) * _parity(factors.perm_c)
    return Factorisation(factors.solve, lambda: factors.U.diagonal(), factors.nnz, "SuperLU", sign)


def _parity(permutation: Any) -> int:
    """1 for an even permutation, -1 for an odd one."""
    n = len(permutation)
    edges = sp.csr_array((np.ones(n), (np.arange(n), permutation)), shape=(n, n))
    cycles, _ = connected_components(edges, directed=False)
    return -1 if (n - cycles) % 2 else 1
