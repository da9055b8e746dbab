# SPDX-License-Identifier: Apache-2.0
"""How long the tensors of a program live, and the memory that they take meanwhile.

A view lives in the memory of the tensor that it is a view of, its *root*. Memory whose last reader
is an operation that works entry by entry is written again by that operation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from hesse.tracing.backends import onednn
from hesse.tracing.graph import Meta, Op, Ref

_aten = torch.ops.aten

# They share the memory of their argument, and do not say so.
_UNMARKED_VIEWS = frozenset(
    [
        *(_aten._unsafe_view.default, _aten.unsafe_split.Tensor, _aten.unsafe_chunk.default),
        _aten.unsafe_split_with_sizes.default,
    ]
)

# X + A B into the memory of X; by `out=`, since torch's FLOP counter does not know `addmm_`.
_ACCUMULATING = {
    _aten.addmm.default: _aten.addmm.out,
    _aten.baddbmm.default: _aten.baddbmm.out,
}


# Views whose entries are not those of their memory.
SIGNED_VIEWS = frozenset([_aten._conj.default, _aten._neg_view.default])


class Lifetimes:
    """Who lives where, and until when.

    Args:
        ops: in the order in which they run.
        stay: what is needed after the last of them, or is not theirs to free.
    """

    def __init__(self, ops: list[Op], stay: Collection[int]) -> None:
        self._root: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.signed: set[int] = set()
        for position, op in enumerate(ops):
            results, reads = list(made_by(op)), list(op.reads())
            if reads and is_view(op.function):
                self._root.update((number, self.root(reads[0])) for number in results)
                if op.function in SIGNED_VIEWS or reads[0] in self.signed:
                    self.signed.update(results)
            for number in (*results, *reads):
                self.last[self.root(number)] = position
        staying = {self.root(number) for number in stay}
        self._dying: dict[int, list[int]] = {}
        for root, position in self.last.items():
            if root not in staying:
                self._dying.setdefault(position, []).append(root)

    def root(self, number: int) -> int:
        """The tensor whose memory it lives in."""
        return self._root.get(number, number)

    def dying(self, position: int) -> list[int]:
        """The roots that nothing needs after this position."""
        return self._dying.get(position, [])


def occupied(
    ops: list[Op], metas: dict[int, Meta], inputs: Collection[int], stay: Collection[int]
) -> Iterator[int]:
    """The bytes that tensors made by `ops` hold while each of them runs; inputs do not count."""
    lifetimes = Lifetimes(ops, [*stay, *inputs])
    held: dict[int, int] = {}
    now = 0
    for position, op in enumerate(ops):
        over = overwritten(op, position, lifetimes, metas)
        for number in made_by(op):
            if not is_view(op.function):
                held[number] = metas[number].nbytes if over is None else 0
                now += held[number]
        if over is not None:  # the memory lives on under another name
            held[next(made_by(op))] = held.pop(lifetimes.root(over), 0)
        yield now + (
            onednn.scratch(op, metas, in_place=over is not None) if onednn.takes(op, metas) else 0
        )
        now -= sum(held.pop(root, 0) for root in lifetimes.dying(position))


def in_place(ops: list[Op], metas: dict[int, Meta], stay: Collection[int]) -> list[Op]:
    """The same operations, writing over what is not needed any more where they can."""
    lifetimes = Lifetimes(ops, stay)
    result = []
    for position, op in enumerate(ops):
        over = overwritten(op, position, lifetimes, metas)
        result.append(op if over is None else _overwriting_op(op, Ref(over)))
    return result


def _overwriting_op(op: Op, over: Ref) -> Op:
    form = _overwriting(op.function)
    assert form is not None
    function, name = form
    if name is not None:
        return replace(op, function=function, kwargs={**op.kwargs, name: over})
    swapped = op.args[0] != over  # a + b = b + a
    return replace(op, function=function, args=op.args[::-1] if swapped else op.args)


def overwritten(op: Op, position: int, lifetimes: Lifetimes, metas: dict[int, Meta]) -> int | None:
    """The argument in whose memory the result may be written."""
    if op.guard is not None or not op.single or _overwriting(op.function) is None:
        return None
    (result,) = op.results
    assert result is not None
    swaps = op.function in (_aten.add.Tensor, _aten.mul.Tensor) and not op.kwargs
    for argument in op.args[: 2 if swaps else 1]:
        if not isinstance(argument, Ref):
            continue
        number, root = argument.index, lifetimes.root(argument.index)
        if (
            root in lifetimes.dying(position)
            and number not in lifetimes.signed
            and metas[number].same_layout(metas[result])
            and metas[number].is_dense
            and all(n == number or lifetimes.root(n) != root for n in op.reads())
        ):
            return number
    return None


@cache
def _overwriting(function: Any) -> tuple[Any, str | None] | None:
    """The form of an operation that writes over its first argument, and by which keyword.

    Only operations that read nothing of that argument but the entry that they write have one.
    """
    if function in _ACCUMULATING:
        return _ACCUMULATING[function], "out"
    if torch.Tag.pointwise not in function.tags:
        return None
    packet, overload = function.overloadpacket, function._overloadname
    own = getattr(_aten, f"{packet.__name__}_", None)
    if own is not None and overload in own.overloads():
        return getattr(own, overload), None
    if packet.__name__.endswith("_backward") and "grad_input" in packet.overloads():
        return packet.grad_input, "grad_input"
    return None


def made_by(op: Op) -> Iterator[int]:
    """The numbers of its results."""
    return (number for number in op.results if number is not None)


@cache
def is_view(function: Any) -> bool:
    """Whether an operation gives its first argument in another form, without a copy."""
    if function in _UNMARKED_VIEWS:
        return True
    schema = function._schema
    first = schema.arguments[0] if schema.arguments else None
    return bool(
        schema.returns
        and first is not None
        and first.alias_info is not None
        and not first.alias_info.is_write
    )
