# SPDX-License-Identifier: Apache-2.0
"""The order of a program: what is used late is computed late, if that takes less memory.

Differentiation leaves a program in the order of its passes: what the first pass computes for the
last one waits for it all the time. An operation is put off until its result is needed when the
result is larger than what has to wait in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hesse.tracing.graph import Meta, Op
from hesse.tracing.memory.liveness import Lifetimes, is_view, made_by

_DEEP = 8
"""How far back to look for what an operation could be put off together with."""


def on_demand(ops: list[Op], anchors: list[Op], there: Collection[int] = ()) -> list[Op]:
    """The anchors in their order, with what they need of `ops` just before its first use.

    Args:
        ops: operations that are no anchors, in an order in which they could run.
        there: numbers that need no computation.
    """
    maker = {number: op for op in ops for number in made_by(op) if number not in there}
    done: set[int] = set()
    result: list[Op] = []
    for anchor in anchors:
        stack = [(number, False) for number in reversed(list(anchor.reads()))]
        while stack:
            number, ready = stack.pop()
            op = maker.get(number)
            if op is None or id(op) in done:
                continue
            if ready:
                done.add(id(op))
                result.append(op)
            else:
                stack.append((number, True))
                stack.extend((source, False) for source in op.reads())
        result.append(anchor)
    return result


def put_off(
    ops: list[Op],
    metas: dict[int, Meta],
    inputs: Collection[int],
    outputs: Collection[int],
    cheap: Callable[[Op], bool],
) -> list[Op]:
    """The same operations in an order that keeps fewer bytes waiting.

    What is computed by a `cheap` operation may be had again, so that it need not wait.
    """
    plan = _PutOff(ops, metas, inputs, outputs, cheap)
    late = plan.late()
    return on_demand([op for op in ops if id(op) in late], [op for op in ops if id(op) not in late])


@dataclass
class _PutOff:
    ops: list[Op]
    metas: dict[int, Meta]
    inputs: Collection[int]
    outputs: Collection[int]
    cheap: Callable[[Op], bool]
    _position: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lifetimes = Lifetimes(self.ops, [*self.inputs, *self.outputs])
        self._maker = {number: op for op in self.ops for number in made_by(op)}
        self._position = {id(op): position for position, op in enumerate(self.ops)}
        self._readers: dict[int, list[Op]] = {}  # of a root, views included
        for op in self.ops:
            for root in {self._lifetimes.root(number) for number in op.reads()}:
                self._readers.setdefault(root, []).append(op)
        self._users: dict[int, list[Op]] = {}  # of a number
        for op in self.ops:
            for number in set(op.reads()):
                self._users.setdefault(number, []).append(op)

    def late(self) -> set[int]:
        """The ids of the operations to put off, the last one first."""
        wanted, late = set(self.outputs), set()
        for op in reversed(self.ops):
            users = [user for number in made_by(op) for user in self._users.get(number, ())]
            if op.guard is not None or not users or wanted.intersection(made_by(op)):
                continue
            first = min(self._position[id(user)] for user in users)
            size = 0 if is_view(op.function) else sum(self.metas[n].nbytes for n in made_by(op))
            if self._waiting(op, first, size, _DEEP) <= size:
                late.add(id(op))
                self._position[id(op)] = first
        return late

    def _waiting(self, op: Op, until: int, most: int, deep: int) -> int:
        """The bytes that wait if `op` runs at `until`; more than `most` is not counted further."""
        total = 0
        for number in set(op.reads()):
            root = self._lifetimes.root(number)
            maker = self._maker.get(root)
            if maker is None or self._is_read(root, op, until):
                continue
            size = self.metas[root].nbytes
            alone = all(reader is op or is_view(reader.function) for reader in self._readers[root])
            if deep and (alone or self.cheap(maker)):
                size = min(size, self._waiting(maker, until, size, deep - 1))
            total += size
            if total > most:
                break
        return total

    def _is_read(self, root: int, but: Op, until: int) -> bool:
        """Whether an operation that reads this root waits for it so long anyway."""
        return root in self.outputs or any(
            self._position[id(reader)] >= until
            for reader in self._readers[root]
            if reader is not but and not is_view(reader.function)
        )
