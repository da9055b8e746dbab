# SPDX-License-Identifier: Apache-2.0
"""`Section`: a part of a report, on the console and on a page; and its progress bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Bars = Callable[[str], Callable[[float], None]]
"""title -> a function that sets its progress bar to a fraction."""


@dataclass
class Section:
    """One section of the report: text, tables, figures."""

    title: str
    text: str
    tables: list[dict[str, Any]]
    verdict: str
    figures: list[dict[str, str]]


def figure(svg: str, caption: str) -> dict[str, str]:
    """A picture of a section."""
    return {"svg": svg, "caption": caption}


def print_section(console: Console, section: Section) -> None:
    """The tables of a section, and its verdict."""
    for table in section.tables:
        shown = Table(title=section.title, title_justify="left")
        for i, head in enumerate(table["head"]):
            shown.add_column(head, justify="left" if i == 0 else "right")
        for row in table["rows"]:
            shown.add_row(*row)
        console.print(shown)
    console.print(section.verdict, "")


@contextmanager
def bars_on(console: Console, enabled: bool) -> Iterator[Bars]:
    """Progress bars, which end with the block."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(40), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not enabled) as progress:

        def bar(title: str) -> Callable[[float], None]:
            task = progress.add_task(title, total=1.0)
            return lambda fraction: progress.update(task, completed=fraction)

        yield bar
