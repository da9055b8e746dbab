# SPDX-License-Identifier: Apache-2.0
"""Trace a computation: note every tensor operation that it runs, below autograd.

A `Tracer` sees the operations of f, of its backward pass and of the backward pass of that. It does
not see what f does in Python, only the numbers and shapes that Python reads of tensors (`.item()`,
`if x > 0:`, the shape of `x[mask]`): these become the guards of the graph.

Where tracing fails for any reason, `UntraceableError` says why, and the caller keeps the graph of
autograd instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.dispatch import Watch
from hesse.tracing.graph import Graph, Node, TensorMeta, UntraceableError, Value
from hesse.tracing.operations import (
    compares_layouts,
    has_dynamic_shape,
    is_operation,
    is_profiling,
    is_random,
    is_view,
)

_ATTRIBUTE = "_hesse_traced_value"

# While operations are observed, torch differentiates the determinant by a singular value
# decomposition, which loses all digits where singular values are equal (torch 2.13).
_OTHER_DERIVATIVES = {torch.ops.aten._linalg_det.default}


class Tracer(Watch):
    """Within it, every operation on tensors becomes a node."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._nodes: list[Node] = []
        self._count = 0
        # Inputs and constants are held by this dict, so that their ids stay theirs. A tensor made
        # during tracing carries its number as an attribute, and may be freed.
        self._held: dict[int, tuple[Tensor, int]] = {}
        self._constants: dict[int, Tensor] = {}
        self._metas: dict[int, TensorMeta] = {}
        self._token = object()
        self._inputs = [self._hold(tensor) for tensor in inputs]

    def observe(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Append the node of result = function(*args, **kwargs)."""
        if not is_operation(function):
            raise UntraceableError(f"the higher-order operation {function}")
        if is_random(function):
            raise UntraceableError(f"{function} draws random numbers")
        if function in _OTHER_DERIVATIVES:
            raise UntraceableError(f"torch takes another derivative of {function} while it traces")
        if compares_layouts(function):
            return  # a graph is for tensors of one layout: the answer never changes
        if is_profiling(function):
            return
        if is_view(function) and not isinstance(args[0], Tensor):
            return  # the conjugate of a number of Python, which is a constant
        args, kwargs = self._values(args), {key: self._values(a) for key, a in kwargs.items()}
        single = not isinstance(result, (tuple, list))
        parts = [result] if single else result
        node = Node(function, args, kwargs, tuple(map(self._result, parts)), single)
        if any(not isinstance(part, Tensor) and part is not None for part in parts):
            node.guard = result
        elif has_dynamic_shape(function):
            node.guard = tuple(tuple(part.shape) for part in parts)
        self._nodes.append(node)

    def graph(self, outputs: Sequence[Tensor]) -> Graph:
        """The graph of what was traced, as a computation of `outputs`."""
        numbers = [self._number(tensor) for tensor in outputs]
        return Graph(self._nodes, self._inputs, numbers, self._constants, self._metas)

    def _values(self, argument: Any) -> Any:
        """An argument with a value in the place of every tensor."""
        if isinstance(argument, Tensor):
            return Value(self._number(argument))
        if isinstance(argument, (list, tuple)):
            return type(argument)(map(self._values, argument))
        return argument

    def _number(self, tensor: Tensor) -> int:
        """The number of a tensor; one that was not seen before is a constant."""
        if (held := self._held.get(id(tensor))) is not None:
            return held[1]
        token, number = tensor.__dict__.get(_ATTRIBUTE, (None, -1))
        if token is self._token:
            return number
        number = self._hold(tensor)
        self._constants[number] = tensor
        return number

    def _result(self, part: Any) -> int | None:
        """The number of a result; None if it is no tensor, or one of the arguments."""
        if not isinstance(part, Tensor):
            if isinstance(part, (list, tuple)):
                raise UntraceableError("an operation that returns a nested list")
            return None
        if id(part) in self._held or part.__dict__.get(_ATTRIBUTE, (None,))[0] is self._token:
            return None  # an in-place operation returns its argument
        number = self._new(part)
        setattr(part, _ATTRIBUTE, (self._token, number))
        return number

    def _hold(self, tensor: Tensor) -> int:
        number = self._new(tensor)
        self._held[id(tensor)] = tensor, number
        return number

    def _new(self, tensor: Tensor) -> int:
        number, self._count = self._count, self._count + 1
        if tensor.layout is not torch.strided:
            raise UntraceableError(f"a tensor of layout {tensor.layout}")
        self._metas[number] = TensorMeta.of(tensor)
        return number
