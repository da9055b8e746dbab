# SPDX-License-Identifier: Apache-2.0
"""`Traffic`: what a process sends to the others of its group."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor

from hesse.dispatch import Watch
from hesse.result import OneLine

# What torch.distributed calls, and which argument counts: the larger of what is given and received.
_COLLECTIVES = {
    "allreduce_": ("all-reduce", 0),
    "_allgather_base_": ("all-gather", 0),
    "_reduce_scatter_base_": ("reduce-scatter", 1),
}


class Traffic(OneLine, Watch):
    """Within it, the collectives of torch.distributed are counted, with their numbers.

    Attributes:
        calls: how many of each kind: "all-reduce", "all-gather", "reduce-scatter"; others by the
            name that torch has for them.
        numbers: how many numbers they reduce, gather or scatter in all, on each rank.

    >>> with Traffic() as traffic:
    ...     pass
    >>> traffic.calls
    Counter()
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.numbers = Counter[str](), Counter[str]()

    def __repr__(self) -> str:
        return f"Traffic({', '.join(f'{k} {name}' for name, k in self.calls.items()) or 'none'})"

    def observe(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Count a collective."""
        space, _, name = str(function).partition(".")
        if space != "c10d":
            return
        name = name.partition(".")[0]
        kind, index = _COLLECTIVES.get(name, (name, 0))
        self.calls[kind] += 1
        self.numbers[kind] += _count(args[index])


def _count(given: Any) -> int:
    if isinstance(given, Tensor):
        return given.numel()
    return sum(map(_count, given)) if isinstance(given, (list, tuple)) else 0
