# SPDX-License-Identifier: Apache-2.0
"""`SparseHessian`: the entries of a sparse Hessian at a point."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_structure import Structure, detected, given
from hesse.engine.closeness import agree
from hesse.errors import DerivativeError, NonFiniteError
from hesse.operators.sparse.colouring import Method
from hesse.operators.sparse.operator import SparseOperator
from hesse.operators.sparse.picture import picture
from hesse.result import html_table
from hesse.vectors.arrays import as_array
from hesse.vectors.space import Tree

MakeStructure = Callable[[CurvatureOperator, Tensor], Structure]

# So many products will follow: a trace pays.
_MANY = 1000


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

        At the 1st, 2nd, 4th, 8th ... point a product is compared.
        """
        H.announce(_MANY)
        self._num_points += 1
        is_checked = self._num_points & (self._num_points - 1) == 0
        structure, v, product = self._structure, None, None
        if is_checked or structure is None:
            v = H.domain.gaussian(torch.Generator().manual_seed(self._num_points))
            product = H._matvec(v)
        if structure is None or not structure.holds_for(H):
            structure = self._new_structure(H, H.domain.zeros() if v is None else v)
        found = _evaluated(H, structure, self)
        if v is not None and product is not None and not _agrees(found, v, product, H):
            raise DerivativeError(
                expected="entries whose product with a random vector is that of the operator",
                got="another product: there are entries outside of the pattern",
                remedy="Leave out pattern=."
                if self._pattern is not None
                else "Use hesse.hessian_operator(f, x), and please report this function.",
            )
        self._structure = structure
        return found

    def _new_structure(self, H: CurvatureOperator, v: Tensor) -> Structure:
        if self._pattern is not None:
            return given(H, self._pattern, self._method)
        return detected(H, v, self._method)


class SparseHessian(SparseOperator):
    """The Hessian of f at x as a sparse matrix; made by `hesse.sparse_hessian_operator`.

    Attributes:
        structure: the pattern and the colouring.
    """

    def __init__(
        self, H: CurvatureOperator, structure: Structure, matrix: Any, maker: Maker
    ) -> None:
        super().__init__(H.domain, matrix)
        self._H, self.structure, self._maker = H, structure, maker

    @property
    def value(self) -> Tensor:
        """f(x), a scalar tensor."""
        return self._H.value

    @property
    def gradient(self) -> Tree:
        """grad f(x), a tree like x."""
        return self._H.gradient

    @property
    def flat_gradient(self) -> Tensor:
        """grad f(x), shape (n,)."""
        return self._H.flat_gradient

    @property
    def num_products(self) -> int:
        """How many products gave all entries: the number of colours."""
        return self.structure.num_products

    @property
    def is_local(self) -> bool:
        """Whether the pattern depends on the point; it is then detected again where it changes."""
        return self.structure.is_local

    @public("{self}.at(x)")
    def at(self, x: Tree) -> SparseHessian:
        """The Hessian of the same function at another point of the same structure.

        Programs, pattern and colouring serve again.

        Cost: `num_products` products.
        """
        return self._maker.make(self._H.at(x))

    def announce(self, products: int) -> None:
        """Nothing: the entries are there."""

    def __reduce__(self) -> Any:
        return _remade, (self._H, self._maker)

    def _expression(self) -> str:
        return "SparseHessian"

    def __repr__(self) -> str:
        rows = [f"  {label:9} {text}" for label, text in self._rows()]
        return "\n".join([super().__repr__(), *rows, *(f"  {line}" for line in self._picture())])

    def _repr_html_(self) -> str:
        """A table for notebooks, and the picture."""
        title = self._expression()
        return f"{html_table(title, self._rows())}<pre>{chr(10).join(self._picture())}</pre>"

    def _rows(self) -> list[tuple[str, str]]:
        n, colouring = self.domain.n, self.structure.compression.colouring
        apart = f", {colouring.hubs} variables apart" if colouring.hubs else ""
        where = "of this point" if self.is_local else "the same at every point"
        return [
            ("entries", f"{self.matrix.nnz:,}, {self.matrix.nnz / n:.3g} in a row"),
            ("products", f"{self.num_products:,} instead of {n:,} ({colouring.method}{apart})"),
            ("pattern", where),
        ]

    def _picture(self) -> list[str]:
        return picture(self.structure.compression.pattern)


def _evaluated(H: CurvatureOperator, structure: Structure, maker: Maker) -> SparseHessian:
    """The entries from one block of products."""
    pattern = structure.compression.pattern
    products = H._matmat(structure.seeds).T
    values = structure.compression.entries(products)
    if not H.domain.all_finite(values):
        raise NonFiniteError(
            expected="finite entries",
            got="NaN or Inf",
            remedy="Look for a division by zero, log(0), sqrt(0) or an overflow at this point.",
        )
    matrix = copy(pattern)  # shares its indices, which are not checked again
    matrix.data = as_array(values)
    return SparseHessian(H, structure, matrix, maker)


def _agrees(found: SparseHessian, v: Tensor, product: Tensor, H: CurvatureOperator) -> bool:
    eps = max(torch.finfo(dtype).eps for dtype in H.domain.dtypes)
    return agree([found._matvec(v)], [product], eps)


def _remade(H: CurvatureOperator, maker: Maker) -> SparseHessian:
    return maker.make(H)
