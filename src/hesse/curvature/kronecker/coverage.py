# SPDX-License-Identifier: Apache-2.0
"""`Coverage`: which block each parameter is in, and by which rule, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hesse.curvature.kronecker.blocks import Block
from hesse.result import html_table

_SHOWN = 12  # blocks in a table of one screen


@dataclass(frozen=True)
class CoveredBlock:
    """A row of the table.

    Args:
        parameters: the names of the parameters in the block.
        form: the block: "64 x 785" for a Kronecker product of factors of these sizes, "dense 10",
            "diagonal 5000", "c I" where there is no rule, "0" for parameters that are not used.
        rule: the operation that it was read from; why there is no rule.
        size: the number of entries.
        part: (2, 3) for the second of three blocks of a parameter of which parts are used apart;
            None for all of it.
    """

    parameters: tuple[str, ...]
    form: str
    rule: str
    size: int
    part: tuple[int, int] | None = None


@dataclass(frozen=True, repr=False)
class Coverage:
    """The blocks of a factored curvature: iterate over `blocks`, or print it for a table."""

    blocks: tuple[CoveredBlock, ...]

    @staticmethod
    def of(blocks: Sequence[Block]) -> Coverage:
        """The table of these blocks."""
        names = [block.names for block in blocks]
        rows, seen = [], Counter()
        for block in blocks:
            seen[block.names] += 1
            parts = names.count(block.names)
            part = (seen[block.names], parts) if parts > 1 else None
            rows.append(CoveredBlock(block.names, block.form, block.rule, block.n, part))
        return Coverage(tuple(rows))

    @property
    def without_rule(self) -> list[str]:
        """The parameters whose block is only a multiple of the identity."""
        rows = (row for row in self.blocks if row.form == "c I")
        return list(dict.fromkeys(name for row in rows for name in row.parameters))

    @property
    def fraction(self) -> float:
        """The fraction of the entries of parameters that a rule covers."""
        covered = sum(row.size for row in self.blocks if row.form != "c I")
        return covered / sum(row.size for row in self.blocks)

    def lines(self, most: int = _SHOWN) -> list[str]:
        """The table, cut to so many blocks; parameters without a rule are named in any case."""
        rows = [("parameters", "block", "read from")]
        rows += [(_title(r), r.form, r.rule) for r in self.blocks[:most]]
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows]
        more = len(self.blocks) - most
        if more > 0:
            lines.append(f"... and {more} more (print .coverage for all)")
        names = self.without_rule
        if names:
            lines.append(
                f"no rule, c I: {', '.join(names[:6])}" + (" ..." if len(names) > 6 else "")
            )
        return lines

    def __repr__(self) -> str:
        return "\n".join(self.lines(len(self.blocks)))

    def _repr_html_(self) -> str:
        rows = [(_title(r), f"{r.form}, {r.rule}") for r in self.blocks]
        return html_table("Coverage", rows)


def _title(row: CoveredBlock) -> str:
    return _joined(row.parameters) + (f" ({row.part[0]} of {row.part[1]})" if row.part else "")


def _joined(names: Sequence[str]) -> str:
    """The names, of which later ones need no prefix: `layer.weight, bias`."""
    first, *rest = names
    prefix = f"{first.rpartition('.')[0]}." if "." in first else ""
    return ", ".join([first, *(name.removeprefix(prefix) for name in rest)])
