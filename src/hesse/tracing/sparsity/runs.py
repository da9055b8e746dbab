# SPDX-License-Identifier: Apache-2.0
"""Runs: places that the same contributions reach, each by neighbours.

Contributions to a place in several groups are added by an index, one after the other, unless the
places are in an order in which they are slices: those of a chain are in few runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# With more runs or groups the index is no slower.
_MOST_RUNS, _MOST_GROUPS = 16, 16


class Run(NamedTuple):
    """Places, and for each group that reaches them where its contributions to them begin."""

    places: Any
    starts: dict[int, int]


def runs(targets: Sequence[Any], count: int) -> list[Run] | None:
    """The runs of all places below `count` that are reached; None if there are too many of them.

    Args:
        targets: of every group, the place of each of its contributions; `count` for none.
        count: the number of places.

    >>> for run in runs([np.array([0, 2, 4]), np.array([2, 4, 6]), np.array([1, 3, 5])], 7):
    ...     print(run.places, run.starts)
    [0] {0: 0}
    [2 4] {0: 1, 1: 0}
    [6] {1: 2}
    [1 3 5] {2: 0}
    """
    if not 0 < len(targets) <= _MOST_GROUPS:
        return None
    within = np.full((len(targets), count), -1, dtype=np.int32)
    for row, places in zip(within, targets, strict=True):
        used = places < count
        if np.bincount(places[used], minlength=1).max() > 1:
            return None
        row[places[used]] = np.flatnonzero(used)
    reached = np.flatnonzero((within >= 0).any(axis=0))
    first = (within[:, reached] >= 0).argmax(axis=0)
    order = reached[np.lexsort((within[first, reached], first))]
    before, after = within[:, order[:-1]], within[:, order[1:]]
    if not len(order):
        return []
    goes_on = np.where(before < 0, after < 0, after == before + 1).all(axis=0)
    breaks = np.flatnonzero(~goes_on) + 1
    if len(breaks) >= _MOST_RUNS:
        return None
    return [
        Run(places, {k: int(row[places[0]]) for k, row in enumerate(within) if row[places[0]] >= 0})
        for places in np.split(order, breaks)
    ]
