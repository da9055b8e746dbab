# SPDX-License-Identifier: Apache-2.0
"""The page of the table of faults, written and read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.faults.fault import FAULTS, Fault, Outcome, Verdict

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

_HEAD = """\
# Faults

What Hesse does when something goes wrong: each row is a fault that `make faults` makes happen, in a
process of its own with a time limit. One rule gives the verdict:

| verdict | what it means |
|---|---|
| refused | an error of Hesse says what is wrong with an argument, a function or a file |
| caught | an error of Hesse, the status of the result or a warning says what happened |
| not converged | the status of the result says that it is not the one asked for |
| survived | the result is the same as without the fault; a warning is quoted |
| passed on | the error of the user's own code reaches the caller; the next call is right |

A fault that goes unnoticed with other numbers is *silent*; the other bad verdicts are *raw error*
(one that Hesse does not explain), *crash* and *hang*. `make faults` fails if there is one; the test
suite repeats a part of the table.

Some checks see what is plain, not everything. Where a product is linear or symmetric up to 1 %, ask
`hesse.testing.check_operator`. A bit that flips in a residual, or a write to the data by NumPy, is
noticed at the next look at the bits, which takes half a percent of the time: a run that ends before
is not warned. Retained graphs are not looked at. A checksum tells a damaged checkpoint, not a
forged one; a forged one runs no code and takes no more memory than its bytes.
"""

_COLUMNS = "| fault | in | verdict | what is said |\n|---|---|---|---|\n"


def write(outcomes: Mapping[str, Outcome], page: Path = PAGE) -> None:
    """Write the page."""
    page.write_text(text(outcomes), encoding="utf-8")


def text(outcomes: Mapping[str, Outcome]) -> str:
    """The page."""
    counts = Counter(outcome.verdict for outcome in outcomes.values())
    said = ", ".join(f"{counts[v]} {v.value}" for v in Verdict if counts[v])
    parts = [_HEAD, f"{len(outcomes)} rows: {said}.\n"]
    for group in dict.fromkeys(fault.group for fault in FAULTS):
        rows = "".join(_row(f, outcomes[f.name]) for f in FAULTS if f.group == group)
        parts.append(f"## {group}\n\n{_COLUMNS}{rows}")
    return "\n".join(parts)


def _row(fault: Fault, outcome: Outcome) -> str:
    cells = fault.title, fault.call, outcome.verdict.value, outcome.says
    return "| " + " | ".join(map(_cell, cells)) + " |\n"


def _cell(text: str) -> str:
    text = " ".join(text.split())
    for sign in "\\|*_<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def rows(page: Path = PAGE) -> dict[str, Outcome]:
    """What the page says of each fault."""
    found = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [_plain(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[2] in {v.value for v in Verdict}:
            found[f"{cells[0]} / {cells[1]}"] = Outcome(Verdict(cells[2]), cells[3])
    return found


def _plain(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell.strip())


def differing(ours: Mapping[str, Outcome], theirs: Mapping[str, Outcome]) -> Iterable[str]:
    """The faults whose rows are not the same, but for the digits of numbers."""
    return [n for n in ours if n not in theirs or _shape(ours[n]) != _shape(theirs[n])]


def _shape(outcome: Outcome) -> tuple[str, str]:
    says = " ".join(outcome.says.split())
    return outcome.verdict.value, re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", says)
