# SPDX-License-Identifier: Apache-2.0
"""What a user calls on an operator: products with vectors, trees and blocks; conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy
import torch
from torch import Tensor

from hesse.boundary import public
from hesse.operators.checks import check_square
from hesse.operators.protocol import OperatorProtocol
from hesse.operators.to_scipy import as_scipy, not_an_array
from hesse.result import html_table
from hesse.vectors.arrays import as_array, as_tensor
from hesse.vectors.rows import transposed
from hesse.vectors.space import Tree

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

_MOST_ROWS = 12  # of details in a repr


class Products(OperatorProtocol):
    """The products and conversions of an operator, from its `_matvec`."""

    __array_ufunc__ = None  # NumPy leaves c * A to the operator

    @public("{self} @ {other}", nested=False)
    def __matmul__(self, other: Any) -> Any:
        """A @ B for an operator, A @ v for a vector or tree, A @ V for a block (n, k)."""
        if isinstance(other, OperatorProtocol):
            return self._times(other)
        if getattr(other, "ndim", 0) == 2 and not self.domain.is_point(other):
            return self.matmat(other)
        return self.matvec(other)

    @public("{self} @ v", nested=False)
    def matvec(self, v: Tree) -> Any:
        """The product A v; `A @ v` is the same.

        Args:
            v: a flat vector (n,), or a tree like x; tensors or NumPy arrays of the dtype and the
                device of the operator.

        Returns:
            In the form of v: a flat vector (m,) or a tree, of tensors or of arrays.

        Cost: one product.

        Raises:
            HesseError: v does not fit the domain; the message names the leaf. An array is not
                converted to another dtype: that would lose digits in silence.

        >>> from hesse.operators import dense_operator
        >>> dense_operator(torch.tensor([[2.0, 1.0], [0.0, 3.0]])).matvec(torch.ones(2))
        tensor([3., 3.])
        """
        flat, leave = self.domain.enter(v, codomain=self.codomain)
        return leave(self._matvec(flat))

    @public("{self}.matmat(V)", nested=False)
    def matmat(self, block: Tensor) -> Any:
        """The products A V with all columns of a block; `A @ V` is the same.

        Args:
            block: V, shape (n, k), a tensor or a NumPy array.

        Returns:
            Shape (m, k), an array for an array.

        Cost: k products; a curvature operator shares work among the columns.

        Raises:
            HesseError: V does not fit the domain.

        >>> from hesse.operators import diagonal_operator
        >>> diagonal_operator(torch.tensor([1.0, 2.0])).matmat(torch.ones(2, 3))
        tensor([[1., 1., 1.],
                [2., 2., 2.]])
        """
        V = self.domain.check_vector(as_tensor(block, self.device), what="V", ndim=2)
        if V.shape[1] == 0:
            product = V.new_zeros(self.codomain.size, 0)
        else:
            product = self._matmat(V.detach())
        return as_array(product) if isinstance(block, numpy.ndarray) else product

    @public("{self}.curvature(v)", nested=False)
    def curvature(self, v: Tree) -> Any:
        """The quadratic form v' A v, accumulated in float64.

        Args:
            v: a flat vector (n,) or a tree like x.

        Returns:
            A float64 scalar tensor; a scalar array if v is an array.

        Cost: at most one product.

        Raises:
            ShapeError: A is not square.
            HesseError: v does not fit the domain.

        >>> from hesse.operators import diagonal_operator
        >>> diagonal_operator(torch.tensor([1.0, 2.0])).curvature(torch.ones(2))
        tensor(3., dtype=torch.float64)
        """
        check_square(self)
        flat, _ = self.domain.enter(v)
        value = torch.tensor(self._curvature(flat), dtype=torch.float64)
        return as_array(value) if isinstance(v, numpy.ndarray) else value

    @public("{self}.to_dense()", nested=False)
    def to_dense(self) -> Tensor:
        """The matrix of A, shape (m, n); for small operators, to look at or to test.

        Cost: n products, and m n numbers.

        >>> from hesse.operators import diagonal_operator
        >>> diagonal_operator(torch.tensor([1.0, 2.0])).to_dense()
        tensor([[1., 0.],
                [0., 2.]])
        """
        self.announce(self.domain.n)
        columns = self.matmat(self.domain.units(0, self.domain.n).T)
        if self.codomain.shards is None:
            return columns
        return self.codomain.whole(transposed(columns)).T

    @public("{self}.to_scipy()", nested=False)
    def to_scipy(self) -> ScipyOperator:
        """The same operator for SciPy, a `scipy.sparse.linalg.LinearOperator` on NumPy vectors.

        Vectors of another dtype are converted to that of the operator. SciPy's functions take this
        operator and not a Hesse operator itself: `scipy.sparse.linalg.eigsh(A.to_scipy())`.

        Where vectors are sharded over processes those of SciPy are whole in each of them: all make
        the same call of SciPy, with the same start (`v0=` or `rng=` of `eigsh`), and take the same
        steps.

        Cost: none; later one product for each vector, and of sharded ones an all-reduce of 4
        numbers for each process and an all-gather. Needs the extra hesse[scipy].

        Raises:
            MissingExtraError: SciPy is not installed.
            RankError: in a product, processes multiply different vectors.

        >>> from hesse.operators import diagonal_operator
        >>> diagonal_operator(torch.tensor([1.0, 2.0])).to_scipy() @ [1.0, 1.0]
        array([1., 2.], dtype=float32)
        """
        return as_scipy(self)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: NumPy would make an array of one object."""
        raise not_an_array(self)

    def __repr__(self) -> str:
        rows = self._details()[:_MOST_ROWS]
        if len(rows) == 1 and rows[0][0] == self._expression():
            return f"{self._title()}\n  {rows[0][1]}"
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([self._title(), *(f"  {name:{width}}  {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        known = {
            "shape": f"{self.shape[0]} x {self.shape[1]}",
            "dtype": str(self.domain.dtype),
            "device": str(self.device),
            "symmetric": str(self.symmetric),
            "vectors": "flat" if self.domain.is_flat else self.domain.describe(),
        }
        return html_table(self._expression(), [*known.items(), *self._details()[:_MOST_ROWS]])
