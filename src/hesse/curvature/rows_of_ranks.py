# SPDX-License-Identifier: Apache-2.0
r"""`RowsOfRanks`: a Jacobian of which each process has the rows of its part of the data.

$$ J = \begin{pmatrix} J_1 \\ \vdots \\ J_p \end{pmatrix}, \qquad
   J' u = \sum_r J_r' u_r $$

Vectors of outputs stay where they are computed. Of J v each process takes its rows, by the operator
that one process would use: nothing is sent but whether that succeeded. J'u is a sum over processes,
as a gradient is. `ColumnsOfRanks` is the transpose, for matrices that are made the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from hesse.curvature.rank_sum import check_same_point
from hesse.curvature.value_of_ranks import NoValue
from hesse.operators.algebra import LinearOperator
from hesse.ranks import Ranks
from hesse.vectors.exchange import summed, whole_columns
from hesse.vectors.rank_rows import over_ranks
from hesse.vectors.space import Space, Tree

Product = Callable[[Tensor], Tensor]
Make = Callable[[Tree], LinearOperator | None]
"""The matrix of this rank's part of the data at a point; None where it has none."""


class NoOutputs(NoValue):
    """The part of a rank without data: a matrix without rows, or without columns.

    Args:
        name: what the parts of the other ranks are called.
    """

    def __init__(self, domain: Space, codomain: Space, name: str) -> None:
        super().__init__(domain, codomain)
        self.name = name

    def at(self, x: Tree) -> NoOutputs:
        return self

    def _matvec(self, v: Tensor) -> Tensor:
        return self.codomain.zeros()

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self.domain.zeros()

    def _expression(self) -> str:
        return self.name


class OfRanks(LinearOperator):
    """A matrix between parameters and outputs, of which each rank has what its data give.

    Args:
        local: the matrix of this rank's part, from whole parameters or to them.
        params: the space of the parameters, with the processes.
        outputs: that of the outputs of all processes.
    """

    is_symmetric = False

    def __init__(self, local: Any, params: Space, outputs: Space) -> None:
        domain, codomain = self._sides(params, outputs)
        super().__init__(domain, codomain, symmetric=self.is_symmetric)
        assert params.ranks is not None
        self.local, self.ranks = local, params.ranks
        self._params, self._outputs = params, outputs

    @staticmethod
    def _sides(params: Space, outputs: Space) -> tuple[Space, Space]:
        """The domain and the codomain."""
        raise NotImplementedError

    @staticmethod
    def _outputs_of(local: LinearOperator) -> Space:
        """The space of outputs of a matrix."""
        raise NotImplementedError

    @classmethod
    def of(cls, ranks: Ranks, make: Make, x: Tree, what: str, name: str) -> Any:
        """That of the matrices called `name` which make() gives at x, gathered if it is sharded.

        Raises:
            RankError: x, which `what` names, is not the same on all ranks.
        """
        with ranks.alike():
            params = Space.of(x, what=what, ranks=ranks)
        whole = params.whole_tree(x)
        with ranks.alike():
            here = Space.of(whole, what=what)
            local = make(whole)
        if params.shards is None or params.shards.is_replicated:
            check_same_point(ranks, here, whole, what)
        outputs = over_ranks(ranks, local and cls._outputs_of(local), params.device)
        if local is None:
            local = NoOutputs(*cls._sides(here, replace(outputs, ranks=None, shards=None)), name)
        return cls(local, params, outputs)

    @property
    def mode(self) -> str:
        """How this rank takes its products."""
        return self.local.mode

    @property
    def plan(self) -> str:
        """How products are taken."""
        sums = "one all-reduce" if self._params.shards is None else "one reduce-scatter"
        return f"{self.ranks}, {sums} for each sum over outputs; here:\n{self.local.plan}"

    def at(self, x: Tree) -> Any:
        """The matrix of the same function at another point of the same structure."""
        return type(self)(self.local.at(self._params.whole_tree(x)), self._params, self._outputs)

    def with_params(self, params: Space) -> Any:
        """The same matrix on parameters that are cut as those of a space, or whole."""
        return type(self)(self.local, params, self._outputs)

    def _to_outputs(self, product: Product, v: Tensor) -> Tensor:
        """The outputs of this rank; v is gathered if each process has a part of it."""
        if self._params.shards is None:
            return self.ranks.each(lambda: product(v), v)
        whole = whole_columns(self._params, v)
        return self.ranks.each(lambda: product(whole))

    def _to_params(self, product: Product, u: Tensor) -> Tensor:
        """The sum over ranks of the products with their outputs."""
        return summed(self._params, tuple(u.shape[1:]), lambda: product(u))

    def _expression(self) -> str:
        return f"{self.local._expression()} of {self.ranks.size} ranks"


class RowsOfRanks(OfRanks):
    """A matrix from parameters to outputs; each rank has the rows of its data."""

    @staticmethod
    def _sides(params: Space, outputs: Space) -> tuple[Space, Space]:
        return params, outputs

    @staticmethod
    def _outputs_of(local: LinearOperator) -> Space:
        return local.codomain

    def _matvec(self, v: Tensor) -> Tensor:
        return self._to_outputs(self.local._matvec, v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._to_params(self.local._rmatvec, u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._to_outputs(self.local._matmat, block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._to_params(self.local._rmatmat, block)


class ColumnsOfRanks(OfRanks):
    """A matrix from outputs to parameters; each rank has the columns of its data."""

    @staticmethod
    def _sides(params: Space, outputs: Space) -> tuple[Space, Space]:
        return outputs, params

    @staticmethod
    def _outputs_of(local: LinearOperator) -> Space:
        return local.domain

    def _matvec(self, v: Tensor) -> Tensor:
        return self._to_params(self.local._matvec, v)

    def _rmatvec(self, u: Tensor) -> Tensor:
        return self._to_outputs(self.local._rmatvec, u)

    def _matmat(self, block: Tensor) -> Tensor:
        return self._to_params(self.local._matmat, block)

    def _rmatmat(self, block: Tensor) -> Tensor:
        return self._to_outputs(self.local._rmatmat, block)
