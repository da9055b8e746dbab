# SPDX-License-Identifier: Apache-2.0
r"""`InputsOfRanks`: the Hessian in the inputs of a model, of data that several processes share.

$$ H = \begin{pmatrix} H_1 & & \\ & \ddots & \\ & & H_p \end{pmatrix}, \qquad
   \Big(\sum_r R_r\Big)'' = H $$

Examples of one process do not act on those of another. So each process has the rows and columns of
its own inputs, and a product sends nothing but whether it succeeded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import cast

from torch import Tensor

from hesse.curvature.operator import CurvatureOperator
from hesse.curvature.rows_of_ranks import OfRanks
from hesse.curvature.value_of_ranks import ValueOfRanks
from hesse.operators.algebra import LinearOperator
from hesse.ranks import Ranks
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


class InputsOfRanks(ValueOfRanks, OfRanks):
    """A symmetric matrix on the inputs of all processes, each of which has its block."""

    is_symmetric = True

    @staticmethod
    def _sides(params: Space, outputs: Space) -> tuple[Space, Space]:
        return outputs, outputs

    @staticmethod
    def _outputs_of(local: LinearOperator) -> Space:
        return local.domain

    @property
    def plan(self) -> str:
        """How products are taken."""
        return f"{self.ranks}, of which each has the rows of its inputs; here:\n{self.local.plan}"

    @cached_property
    def _gradient(self) -> Tensor:
        """The entries of this process."""
        return self.ranks.each(lambda: self.local.flat_gradient)

    def _matvec(self, v: Tensor) -> Tensor:
        return self.ranks.each(lambda: self.local._matvec(v))

    def _matmat(self, block: Tensor) -> Tensor:
        return self.ranks.each(lambda: self.local._matmat(block))


def inputs_of_ranks(
    ranks: Ranks,
    risk: Risk,
    make: Callable[[Risk, Tree], CurvatureOperator],
    x: Tree,
    name: str,
) -> CurvatureOperator:
    """The matrix called `name` in the inputs of all processes; make() gives that of one at x."""
    here = risk.with_unseen_batches().local

    def make_here(x: Tree) -> CurvatureOperator | None:
        return make(here, x) if here.num_summands else None

    H = InputsOfRanks.of(ranks, make_here, x, "x", name)
    return cast(CurvatureOperator, H)  # it has all that one calls of such an operator
