# SPDX-License-Identifier: Apache-2.0
"""New operations in the place of old ones: a tensor that they make has a new number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from hesse.programs.tape import Meta, Op, substituted


def new_numbers(metas: dict[int, Meta]) -> Iterator[int]:
    """Numbers that no tensor has."""
    return count(max(metas, default=0) + 1)


class Builder:
    """Operations on tensors of one device, one after the other; adds to `metas`."""

    def __init__(
        self, metas: dict[int, Meta], numbers: Iterator[int], device: torch.device
    ) -> None:
        self._metas, self._numbers, self._device = metas, numbers, device
        self._ops: list[Op] = []

    def call(self, function: Any, *args: Any) -> int:
        """The number of the result of an operation."""
        number = next(self._numbers)
        made = function(*substituted(args, self._stand_in))
        self._metas[number] = Meta(tuple(made.shape), made.stride(), 0, made.dtype, self._device)
        self._ops.append(Op(function, args, {}, (number,), True))
        return number

    def instead_of(self, op: Op) -> list[Op]:
        """The operations, if the last one makes what `op` does; `op` itself otherwise."""
        (result,), (made,) = op.results, self._ops[-1].results
        assert result is not None and made is not None
        if not self._metas[made].same_layout(self._metas[result]):
            return [op]
        return [*self._ops[:-1], replace(self._ops[-1], results=op.results)]

    def _stand_in(self, number: int) -> Tensor:
        meta = self._metas[number]
        return torch.empty_strided(meta.shape, meta.stride, dtype=meta.dtype, device="meta")
