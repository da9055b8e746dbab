# SPDX-License-Identifier: Apache-2.0
"""`Tape`: what the rules of detection read of a program, and the patterns found so far."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hesse.tracing.graph import Node, TensorMeta, Value
from hesse.tracing.sparsity.patterns import Pattern, identity, select


class Tape:
    """The values of a program in which a pattern is being detected.

    Args:
        metas: of all values.
        known: integers and Booleans that do not depend on the direction, and all values that depend
            neither on it nor on the variables, by number.
        nonzeros: of the values of which entries are zero at every point, True for the others.
        patterns: of the values that depend on the direction, by number.
    """

    def __init__(
        self,
        metas: Mapping[int, TensorMeta],
        known: Mapping[int, Tensor],
        nonzeros: Mapping[int, Tensor],
        patterns: dict[int, Pattern],
    ) -> None:
        self._metas, self._known, self._nonzeros = metas, known, nonzeros
        self.patterns = patterns
        self.looked_at: set[int] = set()

    def shape(self, number: int) -> tuple[int, ...]:
        """The shape of a value."""
        return self._metas[number].shape

    def dtype(self, number: int) -> torch.dtype:
        """The dtype of a value."""
        return self._metas[number].dtype

    def numel(self, number: int) -> int:
        """The number of its entries."""
        return math.prod(self.shape(number))

    def alone(self, number: int) -> Tape:
        """A tape on which this value is the direction, and no other value depends on it."""
        patterns = {number: identity(self.numel(number))}
        return Tape(self._metas, self._known, self._nonzeros, patterns)

    def moves(self, argument: Any) -> bool:
        """Whether an argument is a tensor that depends on the direction."""
        return isinstance(argument, Value) and argument.index in self.patterns

    def moving(self, node: Node) -> list[int]:
        """The values among the arguments of a node that depend on the direction, each once."""
        return [number for number in dict.fromkeys(node.reads()) if number in self.patterns]

    def operand(self, number: int) -> Tensor:
        """The entries of a known value; the detection holds for these."""
        self.looked_at.add(number)
        return self._known[number].cpu()

    def is_known(self, argument: Any) -> bool:
        """Whether `operand` has the entries of an argument."""
        return isinstance(argument, Value) and argument.index in self._known

    def nonzeros(self, argument: Any) -> Tensor | None:
        """Where an argument may differ from zero; None if that is everywhere."""
        if self.is_known(argument):
            entries = self.operand(argument.index) != 0
            return None if bool(entries.all()) else entries
        return self._nonzeros.get(argument.index) if isinstance(argument, Value) else None

    def is_index(self, number: int) -> bool:
        """Whether a value that does not depend on the direction holds integers or Booleans."""
        return number in self._known and is_integer(self._metas[number])

    def numbers(self, number: int, first: int = 1) -> Tensor:
        """The row numbers of a value in the shape of it, from `first` on."""
        return torch.arange(first, first + self.numel(number)).view(self.shape(number))

    def broadcast(self, number: int, shape: Iterable[int]) -> Pattern:
        """The pattern of a value after broadcasting."""
        pattern, shape = self.patterns[number], tuple(shape)
        if shape == self.shape(number):
            return pattern
        return select([pattern], self.numbers(number).expand(shape).numpy())


def is_integer(meta: TensorMeta) -> bool:
    """Whether a tensor holds integers or Booleans: indices, say, or a mask."""
    return not (meta.dtype.is_floating_point or meta.dtype.is_complex)


def row_numbers(ids: Tensor) -> Any:
    """Row numbers as an array of int64."""
    return ids.reshape(-1).numpy().astype(np.int64, copy=False)
