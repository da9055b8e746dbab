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
from hesse.risk.call import device_of
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


class Queries(ABC):
    """m(theta), a vector of Q numbers."""

    @abstractmethod
    def values(self, params: Tree) -> Tensor:
        """m, shape (Q,)."""

    @abstractmethod
    def rows(self, params: Tree) -> Tensor:
        """dm/dtheta, shape (Q, n)."""

    def gradients(self, params: Tree) -> Tensor:
        """M, a block (n, Q) with a gradient in each column."""
        M = self.rows(params).T.contiguous()
        if not Space.of(params).all_finite(M):
            raise NonFiniteError(
                expected="queries with finite gradients",
                got="NaN or Inf",
                remedy="Look at the queries one by one.",
            )
        return M


@dataclass(frozen=True)
class Losses(Queries):
    """The losses of the examples of a risk."""

    risk: Risk

    def values(self, params: Tree) -> Tensor:
        return self.risk.per_example.losses(params)

    def rows(self, params: Tree) -> Tensor:
        return torch.cat(list(self.risk.per_example.gradients(params)))


class Function(Queries):
    """A function of the parameters, or its parts one after the other."""

    def parts(self, params: Tree) -> Iterator[Callable[[Tree], Tensor]]:
        """Functions that return vectors."""
        raise NotImplementedError

    def values(self, params: Tree) -> Tensor:
        with torch.no_grad():
            return torch.cat([_vector(part(params)) for part in self.parts(params)])

    def rows(self, params: Tree) -> Tensor:
        return torch.cat([_jacobian(part, params) for part in self.parts(params)])


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

    def parts(self, params: Tree) -> Iterator[Callable[[Tree], Tensor]]:
        for _, batch in self.risk.batches():
            moved = batch.to(device_of(params))
            yield lambda p, moved=moved: self.of(self.risk.outputs(p, moved), moved.targets)


def queries_of(risk: Risk, queries: Risk | Any, of: Any) -> Queries:
    """The queries of a call."""
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
        return OfParams(function)
    else:
        data = risk.on(queries)
    return Losses(data) if isinstance(of, str) else OfOutputs(data, of)


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
