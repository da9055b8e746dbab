# SPDX-License-Identifier: Apache-2.0
"""`Maker`: from point to point, the entries of the sparse Hessian of one function."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse import Make, SparseHessian
from hesse.curvature.sparse_entries import Entries
from hesse.curvature.sparse_structure import MANY, Structure, detected, given
from hesse.engine.closeness import agree
from hesse.errors import DerivativeError, NonFiniteError
from hesse.operators.sparse.colouring import Method
from hesse.vectors.arrays import as_array

# Of the direction of a comparison. The first numbers of seed 0 are often x itself, and with x the
# product is nothing but rounding if f is homogeneous of degree one, as a sum of norms.
_SEED = 9173


class Maker:
    """Makes the sparse Hessians of one function at all its points.

    Args:
        method: of the colouring.
        pattern: that the user gave, or None.
    """

    def __init__(self, method: Method, pattern: Any) -> None:
        self._method: Method = method
        self._pattern = pattern
        self._structure: Structure | None = None
        self._num_points = 0

    def __reduce__(self) -> Any:  # patterns are detected again where they are wanted
        return Maker, (self._method, self._pattern)

    def make(self, H: CurvatureOperator) -> SparseHessian:
        """The entries of H, by the structure of the last point if that holds for this one.

        A product is compared at the 1st, 2nd, 4th, 8th ... point, and with every new structure.
        """
        self._num_points += 1
        is_due = self._num_points & (self._num_points - 1) == 0
        structure, entries = self._structure, None
        if structure is not None and not is_due:
            entries = structure.entries(H, verified=False)
        if structure is None or entries is None:
            return self._compared(H)
        return _with_entries(H, structure, entries, self.make)

    def _compared(self, H: CurvatureOperator) -> SparseHessian:
        """The entries of H, whose product with a random vector is compared."""
        v = H.domain.gaussian(torch.Generator().manual_seed(_SEED))
        H.announce(MANY)
        product = H._matvec(v)  # which tests H where it is the first one
        structure = self._structure
        entries = None if structure is None else structure.entries(H, verified=True)
        if structure is None or entries is None:
            structure = self._new_structure(H, v)
            entries = structure.entries(H, verified=True)
        assert entries is not None
        found = _with_entries(H, structure, entries, self.make)
        self._check(found, v, product)
        self._structure = structure
        return found

    def _check(self, found: SparseHessian, v: Tensor, product: Tensor) -> None:
        """Raise unless the product of the entries with v is that of the operator."""
        eps = max(torch.finfo(dtype).eps for dtype in found.domain.dtypes)
        if not agree([found._matvec(v)], [product], eps):
            raise DerivativeError(
                expected="entries whose product with a random vector is that of the operator",
                got="another product: there are entries outside of the pattern",
                remedy="Leave out pattern=."
                if self._pattern is not None
                else "Use hesse.hessian_operator(f, x), and please report this function.",
            )

    def _new_structure(self, H: CurvatureOperator, v: Tensor) -> Structure:
        if self._pattern is not None:
            return given(H, self._pattern, self._method)
        return detected(H, v, self._method)


def _with_entries(
    H: CurvatureOperator, structure: Structure, entries: Entries, make: Make
) -> SparseHessian:
    """The sparse Hessian of H, whose structure and entries are known."""
    values = entries.values
    if not (entries.are_finite or H.domain.all_finite(values)):
        raise NonFiniteError(
            expected="finite entries",
            got="NaN or Inf",
            remedy="Look for a division by zero, log(0), sqrt(0) or an overflow at this point.",
        )
    matrix = copy(structure.compression.pattern)  # shares its indices, which are not checked again
    matrix.data = as_array(values)
    return SparseHessian(H, structure, matrix, make)
