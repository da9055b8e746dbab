# SPDX-License-Identifier: Apache-2.0
"""Which rule of each matrix covers each parameter of a model, in a few words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

import hesse
from hesse.curvature.kronecker.coverage import Coverage, CoveredBlock

UNCOVERED = "**no rule**"

_FORMS = {"0": "zero", "dense": "its exact block", "diagonal": "its diagonal"}

Rules = dict[str, str]
"""For each parameter the rule that covers it."""


@dataclass(frozen=True)
class Row:
    """A line of the table: parameters whose names differ in numbers alone.

    Args:
        parameter: their name, with a star in the place of these numbers.
        count: how many there are.
        shape: of the first of them.
        rules: for each column what covers them, which is the same for all.
    """

    parameter: str
    count: int
    shape: tuple[int, ...]
    rules: tuple[str, ...]

    @property
    def is_covered(self) -> bool:
        """Whether every column has a rule."""
        return not any(UNCOVERED in rule for rule in self.rules)


def _factored(coverage: Coverage) -> Rules:
    """The rules of K-FAC or EK-FAC."""
    found: dict[str, list[str]] = {}
    for block in coverage.blocks:
        for name in block.parameters:
            found.setdefault(name, []).append(_in_words(block, name))
    return {name: ", ".join(dict.fromkeys(rules)) for name, rules in found.items()}


def _in_words(block: CoveredBlock, name: str) -> str:
    if block.form == "c I":
        return f"{UNCOVERED}: c I, {block.rule}"
    form = _FORMS.get(block.form.partition(" ")[0], "Kronecker")
    if " x diag " in block.form or block.form.startswith("diag "):
        form = "Kronecker, one factor diagonal"
    if block.part is not None:
        form += f", {block.part[1]} blocks"
    elif name != block.parameters[0]:
        form += f" with `{block.parameters[0].rpartition('.')[2]}`"
    return f"{form} (`{block.rule}`)"


# A column of the table: the rules of a matrix for the parameters of a risk. Another matrix that
# goes by rules, such as an exact diagonal, is one more entry.
COLUMNS: dict[str, Callable[[hesse.Risk], Rules]] = {
    "K-FAC": lambda risk: _factored(hesse.kfac_operator(risk, fisher="sampled").coverage),
    "EK-FAC": lambda risk: _factored(hesse.ekfac_operator(risk, fisher="sampled").coverage),
}


def rows_of(make: Callable[[], hesse.Risk]) -> list[Row]:
    """The table of a model; raises where a column leaves a parameter out."""
    torch.manual_seed(0)
    risk = make()
    columns = {name: rules(risk) for name, rules in COLUMNS.items()}
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[int, ...]]] = {}
    for name, parameter in risk.params.items():
        missing = [column for column, rules in columns.items() if name not in rules]
        if missing:
            raise LookupError(f"{', '.join(missing)}: nothing is said of {name}")
        rules = tuple(_starred(rules[name]) for rules in columns.values())
        groups.setdefault((_starred(name), rules), []).append(tuple(parameter.shape))
    return [Row(name, len(shapes), shapes[0], rules) for (name, rules), shapes in groups.items()]


def uncovered(rows: Iterable[Row]) -> list[str]:
    """The parameters for which a column has no rule."""
    return [row.parameter for row in rows if not row.is_covered]


def _starred(name: str) -> str:
    """The name without the numbers of layers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
