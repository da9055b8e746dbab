# SPDX-License-Identifier: Apache-2.0
"""Parts of a matrix: its blocks, principal sub-matrices, and what it is on a subspace."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor

from hesse.boundary import public
from hesse.errors import OperatorError, ShapeError, StructureError
from hesse.operators.checks import check_square
from hesse.operators.index_sets import entries
from hesse.operators.products import Products
from hesse.operators.protocol import OperatorProtocol
from hesse.vectors.arrays import as_tensor
from hesse.vectors.places import Places
from hesse.vectors.space import Space


class Parts(Products):
    """Operators that are made of some rows and columns, or on a subspace."""

    @public("{self}.block({name})", nested=False)
    def block(self, name: str | Collection[str]) -> Any:
        """The diagonal block of one leaf, or of all leaves below `name`: rows and columns of them.

        Args:
            name: one of `domain.names`, such as "layer.weight", the start of several, "layer", a
                pattern, "encoder.*" or "*.weight", or a list of these.

        Returns:
            An operator on trees of these leaves. It computes nothing; each of its products costs
            one with A, unless the structure of A allows less.

        Raises:
            ArgumentError: no leaf has this name.
            ShapeError: A is not square.

        >>> import torch
        >>> from hesse.operators import diagonal_operator
        >>> D = diagonal_operator({"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 3.0])})
        >>> D.block("b").to_dense()
        tensor([[2., 0.],
                [0., 3.]])
        """
        check_square(self)
        return self._principal(*self.domain.subspace(name))

    @public("{self}.restrict(index)", nested=False)
    def restrict(self, index: Any) -> Any:
        r"""The principal sub-matrix of some entries of the flat vector: A on these, the others 0.

        $$ A_{SS} = E_S^T A E_S, \qquad E_S = (e_i)_{i \in S} $$

        Args:
            index: S, as indices of entries of the flat vector (k,), negative ones from the end; as
                a boolean mask (n,); or as a tree of masks like x, such as those of pruning. Where
                vectors are sharded indices are those of the whole vector, the same on all ranks,
                and a mask is the part of each process, or a tree of `DTensor`s.

        Returns:
            An operator on flat vectors (k,), in the order of the indices; of a mask in that of the
            entries. Symmetric if A is. A diagonal, dense, sparse or low-rank matrix, and sums of
            such, keep their structure, so that the part has an exact inverse where A has one.
            Vectors (k,) are whole in each process.

        Cost: nothing; each product one with A, unless the structure of A allows less. Memory: k
            indices, and a vector of A for a product. Where vectors are sharded, one all-reduce, or
            two of a mask, and for a product one of k numbers.

        Raises:
            HesseError: A not square; indices out of range, twice, or none; a mask that does not
                fit.

        >>> import torch
        >>> from hesse.operators import dense_operator
        >>> A = dense_operator(torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 5.0], [0.0, 5.0, 4.0]]))
        >>> A.restrict([0, 2]).to_dense()
        tensor([[2., 0.],
                [0., 4.]])
        """
        check_square(self)
        whole = self.domain
        chosen = entries(whole, index)
        part = replace(Space.flat(len(chosen), self.dtype, self.device), ranks=whole.ranks)
        return self._principal(part, chosen if whole.shards is None else Places(whole, chosen))

    @public("{self}.project(Q)", nested=False)
    def project(self, Q: Any) -> Any:
        r"""A on the subspace that is spanned by the columns of Q, in coordinates of these.

        $$ A_Q = Q^T A Q $$

        With orthonormal columns it is the compression of A: its eigenvalues lie between those of A,
        and u'A_Q u is the curvature along Q u. To project directions out, project to what is
        orthogonal to them: `A.project(complement_operator(Q))`.

        Args:
            Q: a matrix of shape (n, k), or an operator from k coordinates to n. Its columns need
                not be orthonormal: with x = Q b, A_Q is the Hessian with respect to b.

        Returns:
            A k x k operator, symmetric if A is; `Q @ u` leads back. Of a dense or low-rank A, and
            of sums of such, it is dense or of low rank.

        Cost: nothing; of a product, one with A, one with Q and one with Q'.

        Raises:
            HesseError: A not square; Q of another height, dtype or device than A.

        >>> import torch
        >>> from hesse.operators import diagonal_operator
        >>> D = diagonal_operator(torch.tensor([1.0, 2.0, 3.0]))
        >>> D.project(torch.tensor([[1.0], [1.0], [0.0]])).to_dense()
        tensor([[3.]])
        """
        check_square(self)
        if isinstance(Q, OperatorProtocol):
            return Q.T._times(self._times(Q))  # pyright: ignore[reportAttributeAccessIssue]
        return self._compressed(_columns(Q, self))


def _columns(Q: Any, A: OperatorProtocol) -> Tensor:
    """Q as a matrix of columns in the domain of A."""
    Q = as_tensor(Q, A.device)
    if not isinstance(Q, Tensor):
        raise StructureError(
            expected="Q to be a matrix of shape (n, k), or an operator",
            got=f"{type(Q).__module__}.{type(Q).__name__}",
            remedy="Give the directions as the columns of a tensor: torch.stack(vectors, dim=1).",
        )
    if Q.ndim == 2 and Q.shape[1] == 0:
        raise ShapeError(
            expected="Q with at least one column",
            got=f"shape {tuple(Q.shape)}",
            remedy="Leave out the projection to nothing.",
        )
    block = A.domain.check_vector(Q, what="Q", ndim=2).detach()
    if not A.domain.all_finite(block):
        raise OperatorError(
            expected="finite columns of Q",
            got="NaN or Inf",
            remedy="Check what Q was computed from.",
        )
    return block
