"""Settings for subjects that have no target of their own: the cheapest that do.

They are found once, before anything is timed, with Hesse's product of the same matrix; no product
of the search is counted. So a peer is told beforehand what its user would have to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

SEEDS = range(100, 103)
"""Draws that judge a setting; none of them is measured."""


def first(grid: Iterable[int], good: Callable[[int], bool]) -> int:
    """The first of the grid that is good enough; the last if none is."""
    setting = 0
    for setting in grid:
        if good(setting):
            break
    return setting


def root_mean_square(errors: Iterable[float]) -> float:
    """Of errors over several draws."""
    squares = [error**2 for error in errors]
    return (sum(squares) / len(squares)) ** 0.5
