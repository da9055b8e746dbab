# SPDX-License-Identifier: Apache-2.0
"""Constant propagation: which tensors are filled with one number, whatever the inputs are.

Derivatives are full of them: the seed of a backward pass is a 1, what does not depend on x has
zeros for a derivative, and the second derivative of a square comes with a factor x^0. `simplify`
uses this analysis; it changes nothing by itself. The numbers are exact: an operation is run on
tensors of one entry, in the dtypes of the graph.
"""

from __future__ import annotations

from typing import Any

import torch

from hesse.tracing.graph import Node, TensorMeta, Value, substitute
from hesse.tracing.operations import LAZY_VIEWS, is_pointwise, is_view

_aten = torch.ops.aten

_ZEROS = frozenset([_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default])
_ONES = frozenset([_aten.ones.default, _aten.ones_like.default, _aten.new_ones.default])

# Filled with the argument at this position.
_FILLED = {
    _aten.full.default: 1,
    _aten.full_like.default: 1,
    _aten.fill.Scalar: 1,
    _aten.new_full.default: 2,
    _aten.scalar_tensor.default: 0,
}

# Their result has the entries of their argument.
_COPIES = frozenset([_aten.clone.default, _aten._to_copy.default, _aten.detach.default])


class FilledTensors:
    """The tensors that are filled with one number, and that number."""

    def __init__(self, metas: dict[int, TensorMeta]) -> None:
        self._metas = metas
        self._values: dict[int, float] = {}

    def fill_value(self, argument: Any) -> float | None:
        """The number that an argument is, or that a tensor is filled with."""
        if isinstance(argument, Value):
            return self._values.get(argument.index)
        return float(argument) if isinstance(argument, (int, float)) else None

    def visit(self, node: Node) -> None:
        """Remember the result of a node if it is filled with one number."""
        (result,) = node.results
        if node.guard is not None or result is None or not self._is_real(result):
            return
        value = self._result_value(node)
        if value is not None:
            dtype = self._metas[result].dtype
            self._values[result] = float(torch.tensor(value, dtype=dtype))

    def _is_real(self, number: int) -> bool:
        return self._metas[number].dtype.is_floating_point

    def _result_value(self, node: Node) -> float | None:
        function = node.function
        if function in _ZEROS or function in _ONES:
            return float(function in _ONES)
        if function in _FILLED:
            value = node.args[_FILLED[function]]
            return float(value) if isinstance(value, (int, float)) else None
        if function is _aten.pow.Tensor_Scalar and node.args[1] == 0:
            return 1.0
        reads = set(node.reads())
        if not reads or not reads <= self._values.keys():
            return None
        is_same = is_view(function) and function not in LAZY_VIEWS
        if is_same or function in _COPIES:
            return self.fill_value(node.args[0])
        return self._on_one_entry(node) if is_pointwise(function) else None

    def _on_one_entry(self, node: Node) -> float:
        """The result of a pointwise operation on tensors of one entry."""

        def entry(number: int) -> torch.Tensor:
            return torch.tensor(self._values[number], dtype=self._metas[number].dtype)

        kwargs = {key: substitute(argument, entry) for key, argument in node.kwargs.items()}
        return float(node.function(*substitute(node.args, entry), **kwargs))
