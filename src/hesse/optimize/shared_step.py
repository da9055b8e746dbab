# SPDX-License-Identifier: Apache-2.0
"""The limits of one step of an optimiser, which the processes that share a risk end together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hesse.errors import Status
from hesse.progress import Run
from hesse.ranks import Ranks


@contextmanager
def limits_of_step(limits: Run, ranks: Ranks | None) -> Iterator[Run]:
    """What is left of the limits of all steps.

    Where several processes take a step together, none of them looks at its own clock or is
    interrupted alone: at the beginning, with every product and at `end_of_step` they tell one
    another who wants to end it.

    Raises:
        KeyboardInterrupt: one of the processes was sent Ctrl-C or SIGTERM.
    """
    if ranks is None:
        yield limits
        return
    run = limits.rest(0)
    run.share(ranks)
    with run:
        ranks.meet()
        yield run
    if run.status is Status.INTERRUPTED:
        raise KeyboardInterrupt


def end_of_step(ranks: Ranks | None) -> None:
    """Raise KeyboardInterrupt in all processes if one was sent Ctrl-C after the last product."""
    if ranks is not None:
        ranks.meet()
