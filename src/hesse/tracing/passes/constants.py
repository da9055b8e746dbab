# SPDX-License-Identifier: Apache-2.0
"""Which tensors of a trace hold one number everywhere, whatever the inputs are.

Derivatives are full of them: the seed of a backward pass is a 1, what does not depend on x has
zeros for a derivative, and the second derivative of a square comes with a factor x^0.
"""

from __future__ import annotations

from typing import Any

import torch

from hesse.tracing.graph import Meta, Op, Ref, substituted
from hesse.tracing.memory.liveness import SIGNED_VIEWS, is_view

_aten = torch.ops.aten

_ZEROS = frozenset([_aten.zeros.default, _aten.zeros_like.default, _aten.new_zeros.default])
_ONES = frozenset([_aten.ones.default, _aten.ones_like.default, _aten.new_ones.default])

# The position of the number among the arguments.
_FILLED = {
    _aten.full.default: 1,
    _aten.full_like.default: 1,
    _aten.fill.Scalar: 1,
    _aten.new_full.default: 2,
    _aten.scalar_tensor.default: 0,
}

# They commute with taking one entry for all.
_COPIES = frozenset([_aten.clone.default, _aten._to_copy.default, _aten.detach.default])


class Uniform:
    """Number of a tensor -> the number that it holds, for those that hold one."""

    def __init__(self, metas: dict[int, Meta]) -> None:
        self._metas = metas
        self._values: dict[int, float] = {}

    def get(self, argument: Any) -> float | None:
        """The number that an argument is, or holds everywhere."""
        if isinstance(argument, Ref):
            return self._values.get(argument.index)
        return float(argument) if isinstance(argument, (int, float)) else None

    def note(self, op: Op) -> None:
        """Remember the result if it is one number everywhere."""
        (result,) = op.results
        if op.guard is not None or result is None or not self._is_real(result):
            return
        value = self._value(op, result)
        if value is not None:
            dtype = self._metas[result].dtype
            self._values[result] = float(torch.tensor(value, dtype=dtype))

    def _is_real(self, number: int) -> bool:
        return self._metas[number].dtype.is_floating_point

    def _value(self, op: Op, result: int) -> float | None:
        function = op.function
        if function in _ZEROS or function in _ONES:
            return float(function in _ONES)
        if function in _FILLED:
            value = op.args[_FILLED[function]]
            return float(value) if isinstance(value, (int, float)) else None
        if function is _aten.pow.Tensor_Scalar and op.args[1] == 0:
            return 1.0
        reads = set(op.reads())
        if not reads or not reads <= self._values.keys():
            return None
        is_same = is_view(function) and function not in SIGNED_VIEWS
        if is_same or function in _COPIES:
            return self.get(op.args[0])
        return self._computed(op) if torch.Tag.pointwise in function.tags else None

    def _computed(self, op: Op) -> float:
        """What an operation gives that works entry by entry: on single entries."""

        def entry(number: int) -> torch.Tensor:
            return torch.tensor(self._values[number], dtype=self._metas[number].dtype)

        kwargs = {key: substituted(argument, entry) for key, argument in op.kwargs.items()}
        return float(op.function(*substituted(op.args, entry), **kwargs))
