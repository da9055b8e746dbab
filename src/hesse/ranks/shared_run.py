# SPDX-License-Identifier: Apache-2.0
"""What several processes must know of a run before any of them decides by it.

Whether somebody looks at a run, by a callback, a limit of time or a checkpoint, decides how an
answer is found: not by what saves products but cannot be ended. One process may be given the
callback alone, as it prints.
"""

from __future__ import annotations

import math

from hesse.progress import FilePath, Run
from hesse.ranks.errors import RankError
from hesse.ranks.ranks import Ranks

_ALL_GIVE = "Give all ranks the same path: the first one writes, and the others read it."


def share_run_of(run: Run, ranks: Ranks | None) -> None:
    """Let ranks end a run together, and take it for observed where it is on one of them.

    One all-reduce; nothing without ranks.

    Raises:
        RankError: max_products differ, or only some have a checkpoint.
    """
    if ranks is None:
        return
    limit = 0 if run.max_products == math.inf else run.max_products
    rows = ranks.gather(limit, run.checkpoint is not None, not run.is_unobserved)
    products, paths, observed = zip(*rows, strict=True)
    if len(set(products)) > 1:
        raise RankError(
            expected="the same max_products on all ranks",
            got=", ".join(f"{number:g}" if number else "none" for number in products),
            remedy="Give all ranks the same limit; max_seconds and callbacks may differ.",
        )
    _check_paths(paths)
    run.share(ranks, is_observed=any(observed))


def check_same_checkpoint(ranks: Ranks | None, path: FilePath) -> None:
    """Raise on all ranks unless all of them have a path, or none. One all-reduce."""
    if ranks is not None:
        _check_paths(tuple(given for (given,) in ranks.gather(path is not None)))


def _check_paths(given: tuple[float, ...]) -> None:
    if len(set(given)) > 1:
        raise RankError(
            expected="the same checkpoint=, a path or None, on all ranks",
            got=f"another on rank {given.index(1.0 - given[0])} than on rank 0",
            remedy=_ALL_GIVE,
        )
