# SPDX-License-Identifier: Apache-2.0
"""What influences are on: losses of other examples, or any function of the parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.jacobian import JacobianGraph
from hesse.ad.variables import Variables, tracked
from hesse.errors import FunctionError, NonFiniteError, StructureError
from hesse.ranks import Ranks, alike
from hesse.risk.call import device_of
from hesse.risk.per_example import PerExample
from hesse.risk.risk import Risk
from hesse.vectors.exchange import in_order
from hesse.vectors.space import Space, Tree


@dataclass(frozen=True)
class Queries(ABC):
    """m(theta), a vector of Q numbers, the same on all processes."""

    space: Space
    """Of the parameters."""

    @property
    def ranks(self) -> Ranks | None:
        """The processes that have queries of their own; None where each has all of them."""
        return None

    @abstractmethod
    def values_here(self, params: Tree) -> Tensor:
        """The queries of this process at whole parameters."""

    @abstractmethod
    def rows_here(self, params: Tree) -> Tensor:
        """dm/dtheta, shape (Q, n), of these queries at whole parameters."""

    def values(self, params: Tree) -> Tensor:
        """m, shape (Q,)."""
        whole = self.space.whole_tree(params)
        with alike(self.space.ranks):
            here = self.values_here(whole)
        return here if self.ranks is None else self.ranks.concatenated(here)

    def gradients(self, params: Tree) -> Tensor:
        """M, a block (n, Q) with a gradient in each column."""
        whole = self.space.whole_tree(params)
        with alike(self.space.ranks):
            here = self.rows_here(whole)
        M = self._of_all(here).T.contiguous()
        if not self.space.all_finite(M):
            raise NonFiniteError(
                expected="queries with finite gradients",
                got="NaN or Inf",
                remedy="Look at the queries one by one.",
            )
        return M

    def _of_all(self, here: Tensor) -> Tensor:
        """The rows of all processes; of sharded parameters the part of this process in them."""
        if self.ranks is None:
            return torch.stack([self.space.part(row) for row in here])
        counts = [int(count) for (count,) in self.ranks.gather(len(here))]
        return in_order(self.space, sum(counts), sum(counts[: self.ranks.rank]), lambda: here)


@dataclass(frozen=True)
class Losses(Queries):
    """The losses of examples."""

    each: PerExample
    scale: float
    """1 of a mean; of a sum 1 / Q, as `each` has the losses times their number."""

    @property
    def ranks(self) -> Ranks | None:
        return self.each.ranks

    def values_here(self, params: Tree) -> Tensor:
        return self.scale * self.each.local.losses(params)

    def rows_here(self, params: Tree) -> Tensor:
        space = Space.of(params)
        none = torch.zeros(0, space.n, dtype=space.dtype, device=space.device)
        return self.scale * torch.cat([none, *self.each.local.gradients(params)])


@dataclass(frozen=True)
class Function(Queries):
    """A function of the parameters, or its parts one after the other."""

    def parts(self, params: Tree) -> Iterator[Callable[[Tree], Tensor]]:
        """Functions that return vectors."""
        raise NotImplementedError

    def values_here(self, params: Tree) -> Tensor:
        with torch.no_grad():
            values = [_vector(part(params)) for part in self.parts(params)]
        return torch.cat([torch.zeros(0, dtype=self.space.dtype), *values])

    def rows_here(self, params: Tree) -> Tensor:
        none = torch.zeros(0, self.space.n, dtype=self.space.dtype, device=self.space.device)
        return torch.cat([none, *(_jacobian(part, params) for part in self.parts(params))])


@dataclass(frozen=True)
class OfParams(Function):
    """f(params), a scalar or a vector."""

    f: Callable[[Tree], Tensor]

    def parts(self, params: Tree) -> Iterator[Callable[[Tree], Tensor]]:
        yield self.f


@dataclass(frozen=True)
class OfOutputs(Function):
    """of(outputs, targets), a number for each example of a risk."""

    risk: Risk
    of: Callable[[Any, Any], Tensor]

    @property
    def ranks(self) -> Ranks | None:
        return self.risk.ranks

    def parts(self, params: Tree) -> Iterator[Callable[[Tree], Tensor]]:
        here = self.risk.local
        for _, batch in here.batches():
            moved = batch.to(device_of(params))
            yield lambda p, moved=moved: self.of(here.outputs(p, moved), moved.targets)


def queries_of(risk: Risk, queries: Risk | Any, of: Any, space: Space) -> Queries:
    """The queries of a call; `space` is that of the parameters."""
    if not (of == "loss" if isinstance(of, str) else callable(of)):
        raise StructureError(
            expected="of='loss', or a function of (outputs, targets) with a number for each query",
            got=repr(of),
            remedy="Give, for instance, lambda z, y: z[:, 1] - z[:, 0].",
        )
    if isinstance(queries, Risk):
        data = queries
    elif callable(queries):
        if of != "loss":
            raise StructureError(
                expected="either queries as a function of the parameters, or of=",
                got="both",
                remedy="Leave out of=.",
            )
        function: Any = queries
        return OfParams(space, function)
    else:
        data = risk.on(queries)
    if isinstance(of, str):
        each = data.per_example
        return Losses(space, each, 1.0 if data.averages else 1.0 / each.number)
    return OfOutputs(space, data, of)


def _vector(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim > 1 or not value.is_floating_point():
        got = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else value
        raise FunctionError(
            expected="a number for each query, a floating-point vector",
            got=f"{got}",
            remedy="Reduce everything but the queries.",
        )
    return value.reshape(-1)


def _jacobian(f: Callable[[Tree], Tensor], params: Tree) -> Tensor:
    space = Space.of(params)
    variables = Variables.of(space.copy(params), space)
    with twice_differentiable():
        leaves = tracked(variables.x)
        value = _vector(f(variables.tree(leaves)))
        graph = JacobianGraph([value], leaves)
    units = torch.eye(len(value)).to(value)
    return torch.stack([variables.flatten(graph.pull_back([unit])).clone() for unit in units])
