# SPDX-License-Identifier: Apache-2.0
"""A sum of pieces with zeros around them is put together from the pieces, side by side.

The derivative of x[i:j] is a tensor as large as x, zero but for the entries from i to j. A function
that looks at x piece by piece (a recurrence, a finite difference) gives a sum of many of these.
Between two neighbouring ends of pieces the same pieces are added all along, and no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise

import torch

from hesse.tracing.graph import Op, Ref, Trace
from hesse.tracing.memory.liveness import made_by
from hesse.tracing.passes.builder import Builder, new_numbers
from hesse.tracing.program import live

_aten = torch.ops.aten

Place = tuple[int, int]
"""Where a piece begins and where it ends."""


def join_pieces(trace: Trace) -> Trace:
    """The same computation, up to the order of sums, in no more operations; adds to the metas."""
    return _Joiner(trace).run()


@dataclass
class _Row:
    """The padded pieces of a sum along one dimension, by their places, and what lies where."""

    dim: int
    size: int
    pieces: dict[Place, list[Op]]

    @property
    def parts(self) -> list[tuple[Place, list[Place]]]:
        """From every end of a piece to the next one, and the pieces that reach over that."""
        ends = sorted({0, self.size, *(end for place in self.pieces for end in place)})
        between = pairwise(ends)
        return [((a, b), [p for p in self.pieces if p[0] <= a and b <= p[1]]) for a, b in between]

    @property
    def pays(self) -> bool:
        """Whether laying the pieces side by side takes no more operations than the sum does."""
        number = sum(map(len, self.pieces.values()))
        adds = number - len(self.pieces) + sum(abs(len(over) - 1) for _, over in self.parts)
        return self.size > 0 and number > 1 and adds + 1 <= 2 * number - 1


class _Joiner:
    """One sweep, backwards: a sum comes before the sums that it is made of."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._metas = trace, trace.metas
        self._maker = {number: op for op in trace.ops for number in made_by(op)}
        self._uses = Counter(number for op in trace.ops for number in op.reads())
        self._uses.update(trace.outputs)
        self._numbers = new_numbers(trace.metas)
        self._inner: set[int | None] = set()

    def run(self) -> Trace:
        ops: list[Op] = []
        for op in reversed(self._trace.ops):
            if _is_sum(op) and op.results[0] not in self._inner:
                ops += reversed(self._joined(op))
            else:
                ops.append(op)
        return replace(self._trace, ops=live(ops[::-1], self._trace.outputs))

    def _joined(self, op: Op) -> list[Op]:
        """The operations that take the place of a sum: itself, if it is not one of pieces."""
        (result,) = made_by(op)
        terms = list(self._terms(op, result))
        row, padded = self._row(terms, result)
        if not row.pays:
            return [op]
        builder = Builder(self._metas, self._numbers)
        total = _side_by_side(row, builder)
        reduce(partial(_add, builder), (n for n in terms if n not in padded), total)
        return builder.instead_of(op)

    def _terms(self, op: Op, result: int) -> Iterator[int]:
        """What a sum adds up; a sum in it that nothing else reads is part of it."""
        stack = [argument.index for argument in reversed(op.args)]
        while stack:
            number = stack.pop()
            inner = self._maker.get(number)
            if inner is not None and _is_sum(inner) and self._is_part(number, result):
                self._inner.add(number)
                stack += [argument.index for argument in reversed(inner.args)]
            else:
                yield number

    def _row(self, terms: list[int], result: int) -> tuple[_Row, set[int]]:
        """The padded pieces among the terms, along one dimension, and their numbers."""
        row, padded = _Row(0, 0, {}), set()
        for number in terms:
            op = self._maker.get(number)
            if op is None or not _is_padding(op) or not self._is_part(number, result):
                continue
            dim = op.args[2]
            if not padded:
                row = _Row(dim, self._metas[result].shape[dim], {})
            if dim == row.dim:
                row.pieces.setdefault(_place(op, row.size), []).append(op)
                padded.add(number)
        return row, padded

    def _is_part(self, number: int, result: int) -> bool:
        return self._uses[number] == 1 and self._looks_like(number, result)

    def _looks_like(self, number: int, other: int) -> bool:
        return self._metas[number].same_layout(self._metas[other])


def _side_by_side(row: _Row, builder: Builder) -> int:
    """The sum of the pieces of a row."""
    whole = {
        place: reduce(partial(_add, builder), [_piece(op, builder) for op in ops])
        for place, ops in row.pieces.items()
    }
    parts = []
    for part, over in row.parts:
        cuts = [_cut(whole[place], row.dim, place, part, builder) for place in over]
        parts.append(reduce(partial(_add, builder), cuts) if cuts else _zeros(row, part, builder))
    return builder.call(_aten.cat.default, [Ref(number) for number in parts], row.dim)


def _add(builder: Builder, a: int, b: int) -> int:
    return builder.call(_aten.add.Tensor, Ref(a), Ref(b))


def _piece(padding: Op, builder: Builder) -> int:
    """What there are zeros around."""
    piece, _, dim = padding.args[:3]
    if padding.function is _aten.slice_backward.default:
        return piece.index
    return builder.call(_aten.unsqueeze.default, piece, dim)


def _cut(piece: int, dim: int, place: Place, part: Place, builder: Builder) -> int:
    """The part of a piece at `place`."""
    if place == part:
        return piece
    first, last = part[0] - place[0], part[1] - place[0]
    return builder.call(_aten.slice.Tensor, Ref(piece), dim, first, last)


def _zeros(row: _Row, part: Place, builder: Builder) -> int:
    """Where there is no piece."""
    padding = next(op for ops in row.pieces.values() for op in ops)
    shape = list(padding.args[1])
    shape[row.dim] = part[1] - part[0]
    return builder.call(_aten.new_zeros.default, padding.args[0], shape)


def _is_sum(op: Op) -> bool:
    """Whether it is a + b for two tensors."""
    tensors = all(isinstance(argument, Ref) for argument in op.args)
    return op.function is _aten.add.Tensor and tensors and not op.kwargs


def _is_padding(op: Op) -> bool:
    """Whether it puts zeros around a piece that has no gaps."""
    if op.function is _aten.slice_backward.default:
        return op.args[5] == 1
    return op.function is _aten.select_backward.default


def _place(op: Op, size: int) -> Place:
    """Where the piece that it puts zeros around lies among `size` entries."""
    if op.function is _aten.select_backward.default:
        first = op.args[3] % size
        return first, first + 1
    first, last, _ = slice(op.args[3], op.args[4]).indices(size)
    return first, max(first, last)
