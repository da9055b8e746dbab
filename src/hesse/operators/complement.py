# SPDX-License-Identifier: Apache-2.0
"""`complement_operator`: an orthonormal basis of what is orthogonal to some columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, ShapeError, StructureError, kind_of
from hesse.operators.algebra import LinearOperator
from hesse.vectors.arrays import as_tensor
from hesse.vectors.space import Space


class ComplementOperator(LinearOperator):
    """The last n - k columns of the product of k Householder reflections."""

    def __init__(self, space: Space, reflectors: Tensor, scales: Tensor) -> None:
        n, k = reflectors.shape
        super().__init__(Space.flat(n - k, space.dtype, space.device), space)
        self.reflectors, self.scales = reflectors, scales

    def _matvec(self, v: Tensor) -> Tensor:
        return self._matmat(v[:, None])[:, 0]

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._rmatmat(u[:, None])[:, 0]

    def _matmat(self, block: Tensor) -> Tensor:
        k = len(self.scales)
        padded = torch.cat([block.new_zeros(k, block.shape[1]), block])
        return torch.ormqr(self.reflectors, self.scales, padded)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return torch.ormqr(self.reflectors, self.scales, block, transpose=True)[len(self.scales) :]


@public("hesse.complement_operator(Q)", nested=False)
def complement_operator(Q: Any) -> ComplementOperator:
    r"""Columns Z that are an orthonormal basis of what is orthogonal to the columns of Q.

    $$ Z^T Z = I, \qquad Z^T Q = 0, \qquad [Q \; Z] \text{ spans } \mathbb{R}^n $$

    It serves to project directions out, `A.project(Z)`: translations and rotations of a molecule,
    constraints, a null space, eigenvectors that are known. Unlike (I - Q Q') A (I - Q Q') that has
    no eigenvalues 0 in the place of those of Q. `Z @ y` leads from coordinates back to vectors.

    Args:
        Q: a matrix of shape (n, k), k < n, whose columns are independent; a tensor or an array.

    Returns:
        The operator Z of shape (n, n - k), whose adjoint is `Z.T`.

    Cost: 2 n k^2 operations, 4 n k for a product; n k numbers, not n (n - k).

    Raises:
        HesseError: Q is not a matrix, has no rows left, or dependent columns.

    References: Householder 1958, doi:10.1145/320941.320947.

    >>> Z = complement_operator(torch.tensor([[1.0], [1.0]]))
    >>> Z.shape, (Z @ torch.ones(1)).abs()
    ((2, 1), tensor([0.7071, 0.7071]))
    """
    Q = as_tensor(Q)
    if not isinstance(Q, Tensor) or Q.ndim != 2:
        shape = f" of shape {tuple(Q.shape)}" if isinstance(Q, Tensor) else ""
        raise StructureError(
            expected="Q to be a matrix of shape (n, k)",
            got=f"{kind_of(Q)}{shape}",
            remedy="Give the directions as the columns of a tensor: torch.stack(vectors, dim=1).",
        )
    n, k = Q.shape
    if not 0 < k < n:
        raise ShapeError(
            expected="Q of shape (n, k) with 0 < k < n",
            got=f"shape {(n, k)}",
            remedy="Give columns, fewer than rows; Q.T if they are rows.",
        )
    space = Space.of(Q[:, 0], what="Q")  # raises unless of a real floating-point dtype
    columns = Q.detach().to(space.dtype)
    reflectors, scales = torch.geqrf(columns / _sizes(columns))
    if not _are_independent(reflectors):
        raise OperatorError(
            expected="Q with independent columns",
            got=f"columns that are dependent, zero or not finite to the precision of {space.dtype}",
            remedy="Give the left singular vectors U of torch.linalg.svd(Q) whose singular values "
            "are not zero.",
        )
    return ComplementOperator(Space.flat(n, space.dtype, space.device), reflectors, scales)


def _sizes(columns: Tensor) -> Tensor:
    """The norms of the columns, in float64 as those of large numbers overflow."""
    largest = columns.abs().amax(dim=0).double()
    size = largest * (columns.double() / largest).square().sum(dim=0).sqrt()
    return size.to(columns.dtype)


def _are_independent(reflectors: Tensor) -> bool:
    """Whether R, whose columns have norm 1, has no diagonal entry of the size of rounding."""
    n = reflectors.shape[0]
    smallest = reflectors.diagonal().abs().min()
    return bool(smallest > n * torch.finfo(reflectors.dtype).eps)
