# SPDX-License-Identifier: Apache-2.0
"""Smooth functions to minimise, in float64, with a standard start and their known minima.

Each is a `Problem`: `f` and the standard start `x`; `residuals` where f is a sum of squares;
`minimum`, `minimiser` and `local_minima` as far as they are known. Each family has one file, which
is written from the published formulas that the docstrings name.
"""

from __future__ import annotations

from hesse.testing.problems import Problem
from hesse.testing.smooth import (
    chained,
    clusters,
    discretised,
    dixmaan,
    few,
    matrices,
    mgh_data,
    mgh_few,
    mgh_many,
    multimodal,
    regressions,
    separable,
)


def more_garbow_hillstrom() -> list[Problem]:
    """The 35 problems of More, Garbow & Hillstrom 1981, those of variable size in several sizes.

    >>> len({problem.name.partition("(")[0] for problem in more_garbow_hillstrom()})
    35
    """
    return [*mgh_few.problems(), *mgh_data.problems(), *mgh_many.problems()]


def smooth_problems() -> list[Problem]:
    """All smooth problems, with 2 to 1000 variables.

    >>> problems = smooth_problems()
    >>> len(problems) >= 150, len({problem.name for problem in problems}) == len(problems)
    (True, True)
    """
    families = [chained, separable, dixmaan, few, multimodal, discretised]
    families += [clusters, regressions, matrices]
    return [*more_garbow_hillstrom(), *(p for family in families for p in family.problems())]
