# SPDX-License-Identifier: Apache-2.0
"""Leaves of a tree by name: one, a group of them, a pattern, or several of these."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from hesse.errors import ArgumentError


def chosen_leaves(names: Sequence[str], wanted: Any) -> list[int]:
    """The numbers of the leaves, in their order, that a name, a pattern, or a list of these means.

    Raises:
        ArgumentError: one of them means no leaf.

    >>> chosen_leaves(["a.v", "a.w", "b", "c"], ["c", "a"]), chosen_leaves(["a", "b.v"], "*.v")
    ([0, 1, 3], [1])
    """
    several = [wanted] if isinstance(wanted, str) or not _is_several(wanted) else wanted
    return sorted({i for name in several for i in _meant(names, name)})


def _is_several(wanted: Any) -> bool:
    return isinstance(wanted, (list, tuple, set, frozenset)) and len(wanted) > 0


def _meant(names: Sequence[str], name: Any) -> list[int]:
    leaves = list(enumerate(names)) if isinstance(name, str) and name else []
    chosen = [i for i, leaf in leaves if f"{leaf}.".startswith(f"{name}.")]
    chosen = chosen or [i for i, leaf in leaves if fnmatchcase(leaf, name)]
    if not chosen:
        raise ArgumentError(
            expected="the name of a leaf or of a group of leaves, a pattern of names, or a list of "
            f"these, such as {tuple(names[:4])}",
            got=repr(name),
            remedy="See A.domain.names of an operator A for all of them; for several leaves "
            "give a pattern, as '*.weight', or a list.",
        )
    return chosen
