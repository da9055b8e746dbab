# SPDX-License-Identifier: Apache-2.0
"""The page of the table of coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.coverage.rules import COLUMNS, Row, uncovered

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

_HEAD = """\
# Coverage

Which rule covers which parameter, in models as their libraries have them: from a config, unedited,
with small sizes and random weights. `make coverage` writes this page, and the tests compare it.

A block is read off the traced program, from the operation in brackets (see [Kronecker-factored
curvature](kfac.md#what-is-covered)). *Kronecker* is a product of two factors, of the rows that go
in and of those that come out; *its exact block* is a dense one, of up to 1,024 entries. A star
stands for the numbers of layers. The summary names what no rule covers.
"""


def text(tables: Mapping[str, Sequence[Row]]) -> str:
    """The page, from the rows of each model."""
    parts = [_HEAD, _summary(tables)]
    for model, rows in tables.items():
        head = ["parameter", "shape", "number", *COLUMNS]
        lines = [head, ["---"] * len(head), *map(_cells, rows)]
        parts.append(f"## {model}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def _summary(tables: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| model | parameters | without a rule |\n|---|--:|---|\n"]
    for model, rows in tables.items():
        names = ", ".join(f"`{name}`" for name in uncovered(rows))
        lines.append(f"| {model} | {sum(row.count for row in rows)} | {names or 'none'} |\n")
    return "".join(lines)


def _cells(row: Row) -> list[str]:
    first, *others = row.rules
    same = [rule if rule != first else "the same" for rule in others]
    shape = " x ".join(map(str, row.shape))
    return [f"`{row.parameter}`", shape, str(row.count), first, *same]


def sections(page: str) -> dict[str, str]:
    """The parts of a page by model; the summary is that of the empty name."""
    head, *parts = page.split("\n## ")
    named = (part.partition("\n") for part in parts)
    return {"": head, **{name: rest.strip() for name, _, rest in named}}
