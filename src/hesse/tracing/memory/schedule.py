# SPDX-License-Identifier: Apache-2.0
"""Reorder a program so that what is used late is computed late, if that takes less memory.

Differentiation leaves the nodes in the order of its passes: what the first pass computes for the
last one stays in memory all the time. A node is delayed until its result is needed if the result is
larger than the arguments that have to stay in memory instead. Only the order changes, and every
node runs after those it depends on, so that the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hesse.tracing.graph import Node, TensorMeta
from hesse.tracing.memory.liveness import Lifetimes
from hesse.tracing.operations import is_view

# How many nodes back to look for arguments that could be delayed together with a node.
_DEPTH = 8


def lazy_order(nodes: list[Node], anchors: list[Node], present: Collection[int] = ()) -> list[Node]:
    """The anchors in their order, each after the nodes that it is the first to need.

    Args:
        nodes: in an order in which they could run; those that no anchor needs are left out.
        present: values that need no computation.
    """
    maker = {number: node for node in nodes for number in node.makes() if number not in present}
    done: set[int] = set()
    result: list[Node] = []
    for anchor in anchors:
        stack = [(number, False) for number in reversed(list(anchor.reads()))]
        while stack:
            number, ready = stack.pop()
            node = maker.get(number)
            if node is None or id(node) in done:
                continue
            if ready:
                done.add(id(node))
                result.append(node)
            else:
                stack.append((number, True))
                stack.extend((source, False) for source in node.reads())
        result.append(anchor)
    return result


def delay(
    nodes: list[Node],
    metas: dict[int, TensorMeta],
    inputs: Collection[int],
    outputs: Collection[int],
    is_cheap: Callable[[Node], bool],
) -> list[Node]:
    """The same nodes, delayed where that keeps fewer bytes in memory.

    The result of a cheap node may be recomputed, so that it does not have to stay.
    """
    late = _Delay(nodes, metas, inputs, outputs, is_cheap).late()
    return lazy_order(
        [node for node in nodes if id(node) in late],
        [node for node in nodes if id(node) not in late],
    )


class _Delay:
    """Chooses the nodes to delay; `_position` says where each one runs so far."""

    def __init__(
        self,
        nodes: list[Node],
        metas: dict[int, TensorMeta],
        inputs: Collection[int],
        outputs: Collection[int],
        is_cheap: Callable[[Node], bool],
    ) -> None:
        self._nodes, self._metas, self._outputs, self._is_cheap = nodes, metas, outputs, is_cheap
        self._lifetimes = Lifetimes(nodes, [*inputs, *outputs])
        self._maker = {number: node for node in nodes for number in node.makes()}
        self._position = {id(node): position for position, node in enumerate(nodes)}
        self._root_readers: dict[int, list[Node]] = {}  # of a root or of a view of it
        self._readers: dict[int, list[Node]] = {}
        for node in nodes:
            for root in {self._lifetimes.root(number) for number in node.reads()}:
                self._root_readers.setdefault(root, []).append(node)
            for number in set(node.reads()):
                self._readers.setdefault(number, []).append(node)

    def late(self) -> set[int]:
        """The ids of the nodes to delay, found from the last node to the first."""
        outputs, late = set(self._outputs), set()
        for node in reversed(self._nodes):
            readers = [user for number in node.makes() for user in self._readers.get(number, ())]
            if node.guard is not None or not readers or outputs.intersection(node.makes()):
                continue
            first = min(self._position[id(reader)] for reader in readers)
            size = 0
            if not is_view(node.function):
                size = sum(self._metas[number].nbytes for number in node.makes())
            if self._staying_bytes(node, first, size, _DEPTH) <= size:
                late.add(id(node))
                self._position[id(node)] = first
        return late

    def _staying_bytes(self, node: Node, until: int, limit: int, depth: int) -> int:
        """The bytes that stay for `node` if it runs at `until`, counted until `limit` is passed."""
        total = 0
        for number in set(node.reads()):
            root = self._lifetimes.root(number)
            maker = self._maker.get(root)
            if maker is None or self._stays_anyway(root, node, until):
                continue
            size = self._metas[root].nbytes
            readers = self._root_readers[root]
            only_reader = all(user is node or is_view(user.function) for user in readers)
            if depth and (only_reader or self._is_cheap(maker)):
                size = min(size, self._staying_bytes(maker, until, size, depth - 1))
            total += size
            if total > limit:
                break
        return total

    def _stays_anyway(self, root: int, node: Node, until: int) -> bool:
        """Whether the program needs a root at `until` or later, even without `node`."""
        return root in self._outputs or any(
            self._position[id(reader)] >= until
            for reader in self._root_readers[root]
            if reader is not node and not is_view(reader.function)
        )
