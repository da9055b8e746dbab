# SPDX-License-Identifier: Apache-2.0
"""Greedy colourings of a graph, vertex by vertex.

Each vertex gets the first colour that the vertices coloured so far allow. Sets of colours are
integers, with a bit for each colour: their union is `|`, and the first free colour is the lowest
zero bit.

A vertex is a variable, an edge an entry beside the diagonal, and a colour a product with the sum of
the unit vectors of its vertices. `neighbours` lists the neighbours of every vertex, without itself.
All functions return the colour of every vertex, counted from 0.

References: Gebremedhin, Tarafdar, Pothen & Walther 2009, doi:10.1287/ijoc.1080.0286; Gebremedhin,
Tarafdar, Manne & Pothen 2007, doi:10.1137/050639879.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Neighbours = Sequence[Sequence[int]]


def distance_2(neighbours: Neighbours, order: Iterable[int]) -> list[int]:
    """No two vertices within two steps of each other share a colour.

    In the product of a colour a row has one entry at most.

    >>> distance_2([[1], [0, 2], [1, 3], [2]], range(4))    # a path
    [0, 1, 2, 0]
    """
    around = [0] * len(neighbours)  # the colours of the neighbours of each vertex
    colours = [-1] * len(neighbours)
    for v in order:
        near = neighbours[v]
        taken = around[v]
        for w in near:
            taken |= around[w]
        bit = ~taken & (taken + 1)
        colours[v] = bit.bit_length() - 1
        for w in near:
            around[w] |= bit
    return colours


def star(neighbours: Neighbours, order: Iterable[int]) -> list[int]:
    """Neighbours differ, and every path of four vertices has three colours.

    The vertices of two colours make stars, so that of each edge one end has no other neighbour of
    the colour of the other end: the entry is alone there.

    >>> star([[1], [0, 2], [1, 3], [2]], range(4))    # a path
    [0, 1, 0, 2]
    """
    n = len(neighbours)
    bits, once, twice = [0] * n, [0] * n, [0] * n  # `twice`: colours of two neighbours or more
    for v in order:
        taken, double = once[v], twice[v]
        near = neighbours[v]
        for w in near:
            bit = bits[w]
            if not bit:
                continue
            if bit & double:  # w - v - w', of one colour: v must be unlike all neighbours of w
                taken |= once[w]
            else:
                for x in neighbours[w]:
                    if bit & twice[x]:  # v - w - x - w', with w and w' of one colour
                        taken |= bits[x]
        bit = ~taken & (taken + 1)
        bits[v] = bit
        for w in near:
            twice[w] |= once[w] & bit
            once[w] |= bit
    return [bit.bit_length() - 1 for bit in bits]


def acyclic(neighbours: Neighbours, order: Iterable[int]) -> list[int]:
    """Neighbours differ, and every cycle has three colours.

    The vertices of two colours make trees: entries follow from one another, beginning at the
    leaves.

    >>> acyclic([[1], [0, 2], [1, 3], [2]], range(4))    # a path
    [0, 1, 0, 1]
    """
    colours = [-1] * len(neighbours)
    forest = _Forest()
    for v in order:
        groups: dict[int, list[int]] = {}
        for w in neighbours[v]:
            if colours[w] >= 0:
                groups.setdefault(colours[w], []).append(w)
        colour = 0
        while colour in groups or forest.has_cycle(groups.values(), colour):
            colour += 1
        colours[v] = colour
        forest.add(v, colour, groups)
    return colours


class _Forest:
    """The trees of every two colours, as disjoint sets; an edge belongs to one of them."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._tree: dict[tuple[int, int], int] = {}
        """(a vertex, the colour of neighbours) -> the tree of its edges to them."""

    def has_cycle(self, groups: Iterable[list[int]], colour: int) -> bool:
        """Whether a vertex of a colour would join a tree to itself.

        Args:
            groups: the neighbours of the vertex, those of one colour together.
            colour: of the vertex.
        """
        for group in groups:
            if len(group) > 1:
                trees = [self._root((w, colour)) for w in group if (w, colour) in self._tree]
                if len(set(trees)) < len(trees):
                    return True
        return False

    def add(self, v: int, colour: int, groups: dict[int, list[int]]) -> None:
        """Join the trees around a vertex, which now has a colour."""
        for other, group in groups.items():
            tree = len(self._parent)
            self._parent.append(tree)
            self._tree[v, other] = tree
            for w in group:
                if (w, colour) in self._tree:
                    self._parent[self._root((w, colour))] = tree
                else:
                    self._tree[w, colour] = tree

    def _root(self, key: tuple[int, int]) -> int:
        tree, parent = self._tree[key], self._parent
        while parent[tree] != tree:
            parent[tree] = parent[parent[tree]]
            tree = parent[tree]
        return tree
