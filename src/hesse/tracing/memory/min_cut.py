# SPDX-License-Identifier: Apache-2.0
"""The minimum cut of a network, by Dinic's algorithm.

Source: Dinic 1970; Ahuja, Magnanti & Orlin 1993, section 7.5.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable


class Network:
    """A directed graph with capacities on its edges.

    >>> network = Network()
    >>> for a, b, capacity in [("s", 1, 3), ("s", 2, 2), (1, "t", 2), (2, "t", 3), (1, 2, 5)]:
    ...     network.add(a, b, capacity)
    >>> network.minimum_cut("s", "t") == {"t"}     # 2 + 3 enter t
    True
    """

    def __init__(self) -> None:
        self._number: dict[Hashable, int] = {}
        self._edges: list[list[int]] = []  # of a node: numbers of edges; edge e ^ 1 is e reversed
        self._head: list[int] = []
        self._capacity: list[float] = []

    def add(self, tail: Hashable, head: Hashable, capacity: float) -> None:
        """Add an edge."""
        a, b = self._node(tail), self._node(head)
        for start, end, room in ((a, b, capacity), (b, a, 0.0)):
            self._edges[start].append(len(self._head))
            self._head.append(end)
            self._capacity.append(room)

    def minimum_cut(self, source: Hashable, sink: Hashable) -> set[Hashable]:
        """The nodes on the side of the sink of a minimum cut, the one nearest to the sink."""
        s, t = self._node(source), self._node(sink)
        while (level := self._levels(s))[t] >= 0:
            following = [0] * len(self._edges)
            while self._augment(s, t, level, following):
                pass
        side = self._reaching(t)
        return {node for node, number in self._number.items() if number in side}

    def _reaching(self, sink: int) -> set[int]:
        """The nodes from which a path with room leads to the sink."""
        found, queue = {sink}, [sink]
        while queue:
            for edge in self._edges[queue.pop()]:
                tail = self._head[edge]
                if self._capacity[edge ^ 1] > 0 and tail not in found:
                    found.add(tail)
                    queue.append(tail)
        return found

    def _node(self, name: Hashable) -> int:
        if name not in self._number:
            self._number[name] = len(self._edges)
            self._edges.append([])
        return self._number[name]

    def _levels(self, source: int) -> list[int]:
        """The distance of every node from the source along edges with room, -1 if there is none."""
        level = [-1] * len(self._edges)
        level[source] = 0
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for edge in self._edges[node]:
                head = self._head[edge]
                if self._capacity[edge] > 0 and level[head] < 0:
                    level[head] = level[node] + 1
                    queue.append(head)
        return level

    def _augment(self, source: int, sink: int, level: list[int], following: list[int]) -> bool:
        """Send flow along one shortest path, found without recursion; False if there is none."""
        path: list[int] = []
        node = source
        while node != sink:
            edges = self._edges[node]
            while following[node] < len(edges):
                edge = edges[following[node]]
                if self._capacity[edge] > 0 and level[self._head[edge]] == level[node] + 1:
                    break
                following[node] += 1
            if following[node] < len(edges):
                path.append(edges[following[node]])
                node = self._head[path[-1]]
            elif path:  # a dead end: step back, and do not come here again
                node = self._head[path.pop() ^ 1]
                following[node] += 1
            else:
                return False
        flow = min((self._capacity[edge] for edge in path), default=math.inf)
        for edge in path:
            self._capacity[edge] -= flow
            self._capacity[edge ^ 1] += flow
        return True
