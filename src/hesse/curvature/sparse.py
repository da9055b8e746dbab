# SPDX-License-Identifier: Apache-2.0
"""`SparseHessian`: the entries of a sparse Hessian at a point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from hesse.boundary import public
from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.sparse_structure import Structure
from hesse.operators.sparse.operator import SparseOperator
from hesse.operators.sparse.picture import picture
from hesse.result import html_table
from hesse.vectors.space import Tree

__all__ = ["SparseHessian"]

Make: TypeAlias = Callable[[CurvatureOperator], "SparseHessian"]
"""The sparse Hessian of an operator at another point."""


class SparseHessian(SparseOperator):
    """The Hessian of f at x as a sparse matrix; made by `hesse.sparse_hessian_operator`.

    Attributes:
        structure: the pattern and the colouring.
    """

    def __init__(self, H: CurvatureOperator, structure: Structure, matrix: Any, make: Make) -> None:
        super().__init__(H.domain, matrix)
        self._H, self.structure, self._make = H, structure, make

    @property
    def value(self) -> Tensor:
        """f(x), a scalar tensor; f may be called for it at the first use."""
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
        """How many products give all entries: the number of colours."""
        return self.structure.num_products

    @property
    def cost(self) -> int:
        """What the entries at a point cost, in products: `num_products`, or less by a program."""
        return self.structure.cost

    @property
    def is_local(self) -> bool:
        """Whether the pattern depends on the point; it is then detected again where it changes."""
        return self.structure.is_local

    @public("{self}.at(x)")
    def at(self, x: Tree) -> SparseHessian:
        """The Hessian of the same function at another point of the same structure.

        Programs, pattern and colouring serve again.

        Cost: `num_products` products, or less.
        """
        return self._make(self._H.at(x))

    def announce(self, products: int) -> None:
        """Nothing: the entries are there."""

    def __reduce__(self) -> Any:
        return self._make, (self._H,)

    def _expression(self) -> str:
        return "SparseHessian"

    def __repr__(self) -> str:
        rows = [f"  {label:9} {text}" for label, text in self._rows()]
        return "\n".join([self._title(), *rows, *(f"  {line}" for line in self._picture())])

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
