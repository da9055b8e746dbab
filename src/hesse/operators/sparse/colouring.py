# SPDX-License-Identifier: Apache-2.0
"""Colour a symmetric pattern, so that few products give all entries of the matrix.

A product with the sum of the unit vectors of one colour gives the sum of their columns. `greedy.py`
has the colourings from which every entry can be found again. This file chooses one: hubs apart, in
the order of the variables or in one of small bandwidth, at distance 2 or in stars.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import reverse_cuthill_mckee

from hesse.operators.sparse import greedy

Method = Literal["auto", "distance-2", "star", "acyclic"]
METHODS = ["auto", "distance-2", "star", "acyclic"]
_GREEDY = {"distance-2": greedy.distance_2, "star": greedy.star, "acyclic": greedy.acyclic}

# On so many vertices the candidates are compared; the best one colours the rest of them.
_SAMPLE = 20_000

# The other order is taken for a large graph if neighbours are so many times closer in it.
_CLOSER = 4.0

_MOST_HUBS = 1000


@dataclass(frozen=True)
class Colouring:
    """The colour of every variable, counted from 0.

    Args:
        colours: shape (n,), int64.
        count: the number of colours.
        method: "distance-2", "star" or "acyclic".
        hubs: how many variables have a colour of their own because of their many neighbours.
    """

    colours: Any
    count: int
    method: str
    hubs: int = 0


def colour(pattern: Any, method: Method = "auto") -> Colouring:
    """A colouring of few colours.

    Args:
        pattern: a symmetric `scipy.sparse.csr_array`; the diagonal plays no part.
        method: "auto" is the better one of "distance-2" and "star", whose entries are read from
            products; "acyclic" takes fewer colours, and entries are differences of others.

    Cost: n + nnz steps in Python and, for stars, as many times the number of neighbours.

    >>> import scipy.sparse as sp
    >>> colour(sp.csr_array(np.ones((3, 3), dtype=bool))).count
    3
    """
    graph = _without_diagonal(pattern)
    hubs = _hubs(np.diff(graph.indptr))
    others = np.setdiff1d(np.arange(graph.shape[0]), hubs)
    rest = graph if not len(hubs) else graph[others][:, others]
    chosen, found = _colour_graph(rest, method)
    colours = np.empty(graph.shape[0], dtype=np.int64)
    colours[others] = found
    count = int(found.max()) + 1 if len(found) else 0
    colours[hubs] = np.arange(count, count + len(hubs))
    return Colouring(colours, count + len(hubs), chosen, len(hubs))


def _without_diagonal(pattern: Any) -> Any:
    rows = np.repeat(np.arange(pattern.shape[0]), np.diff(pattern.indptr))
    off = rows != pattern.indices
    ones = np.ones(int(off.sum()), dtype=bool)
    return sp.csr_array((ones, (rows[off], pattern.indices[off])), shape=pattern.shape)


def _hubs(degrees: Any) -> Any:
    """The vertices of highest degree, if with colours of their own there may be fewer colours.

    Those of a distance-2 colouring are at least the largest degree of the others, plus 1.
    """
    order = np.argsort(-degrees, kind="stable")[:_MOST_HUBS]
    if not len(order):
        return order
    fewest = np.arange(len(order)) + degrees[order] + 1
    return np.sort(order[: int(np.argmin(fewest))])


def _colour_graph(graph: Any, method: Method) -> tuple[str, Any]:
    """The method that was chosen, and the colours."""
    n = graph.shape[0]
    methods = ["distance-2", "star"] if method == "auto" else [method]
    orders = [np.arange(n)]
    if n and graph.nnz:
        other = reverse_cuthill_mckee(graph, symmetric_mode=True)
        orders.append(np.asarray(other, dtype=np.int64))
    if n > _SAMPLE:
        near, other_near = (_mean_distance(graph, order) for order in orders)
        orders = orders[1:] if other_near * _CLOSER < near else orders[:1]
        sample = orders[0][:_SAMPLE]
        part = graph[sample][:, sample]
        counts = [max(_GREEDY[name](_lists(part), range(_SAMPLE))) for name in methods]
        methods = [methods[int(np.argmin(counts))]]
    neighbours = _lists(graph)
    results = [
        (name, np.asarray(_GREEDY[name](neighbours, order.tolist()), dtype=np.int64))
        for name in methods
        for order in orders
    ]
    return min(results, key=lambda result: result[1].max(initial=-1))


def _mean_distance(graph: Any, order: Any) -> float:
    """How far apart neighbours stand in an order, on average."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    rows = np.repeat(place, np.diff(graph.indptr))
    return float(np.abs(rows - place[graph.indices]).mean())


def _lists(graph: Any) -> list[list[int]]:
    """The neighbours of every vertex."""
    starts, indices = graph.indptr.tolist(), graph.indices.tolist()
    return [indices[a:b] for a, b in pairwise(starts)]
