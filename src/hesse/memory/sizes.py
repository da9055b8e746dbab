# SPDX-License-Identifier: Apache-2.0
"""Numbers of bytes as text."""

from __future__ import annotations

import re

from hesse.errors import ArgumentError

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse_bytes(budget: int | float | str, call: str = "") -> int:
    """The number of bytes that a number or a text such as "4GB" or "500 MiB" says.

    >>> parse_bytes("1.5 GB"), parse_bytes("2KiB"), parse_bytes(7)
    (1500000000, 2048, 7)
    >>> parse_bytes("1e-3 GB"), parse_bytes("1e+3 MB")
    (1000000, 1000000000)
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(budget).lower())
    try:
        assert match is not None
        size = int(float(match[1]) * _UNITS[match[2]])
    except (AssertionError, KeyError, OverflowError, ValueError):
        size = 0
    if size > 0:
        return size
    raise ArgumentError(
        call,
        expected='memory_budget as a number of bytes or a text such as "4GB", "500MiB"',
        got=repr(budget),
        remedy="Give a positive number of bytes, or leave it out for the default.",
    )
