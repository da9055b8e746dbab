# SPDX-License-Identifier: Apache-2.0
"""New operations in the place of old ones: a tensor that they make has a new number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

from hesse.tracing.graph import Meta, Op
from hesse.tracing.shape_inference import result_of


def new_numbers(metas: dict[int, Meta]) -> Iterator[int]:
    """Numbers that no tensor has."""
    return count(max(metas, default=0) + 1)


class Builder:
    """Operations on tensors, one after the other; adds to `metas`."""

    def __init__(self, metas: dict[int, Meta], numbers: Iterator[int]) -> None:
        self._metas, self._numbers = metas, numbers
        self._ops: list[Op] = []

    def call(self, function: Any, *args: Any) -> int:
        """The number of the result of an operation."""
        number = next(self._numbers)
        self._metas[number] = result_of(function, args, self._metas)
        self._ops.append(Op(function, args, {}, (number,), True))
        return number

    def instead_of(self, op: Op) -> list[Op]:
        """The operations, if the last one makes what `op` does; `op` itself otherwise."""
        (result,), (made,) = op.results, self._ops[-1].results
        assert result is not None and made is not None
        if not self._metas[made].same_layout(self._metas[result]):
            return [op]
        return [*self._ops[:-1], replace(self._ops[-1], results=op.results)]
