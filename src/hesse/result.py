# SPDX-License-Identifier: Apache-2.0
"""How objects print, and `Result`: the base of all results, which index as SciPy's do."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hesse.errors import MissingExtraError, StructureError

_ENTRIES = 6
_WIDTH = 88


class Result:
    """A dataclass or named tuple of results.

    A field is an attribute, `r.x`, and an entry, `r["x"]`. `repr` shows one line for each field, in
    which long tensors and histories are summarised; a notebook shows a table.

    >>> from dataclasses import dataclass
    >>> @dataclass(repr=False)
    ... class Solution(Result):
    ...     x: Tensor
    ...     products: int
    >>> result = Solution(torch.arange(100.0), 3)
    >>> result["products"], list(result.keys()), "x" in result, result.get("hess")
    (3, ['x', 'products'], True, None)
    >>> result
    Solution
      x         tensor of shape (100,): 0, 1, 2, ..., 97, 98, 99
      products  3
    """

    def __getitem__(self, name: Any) -> Any:
        """A field by its name, or by its position in a named tuple."""
        if isinstance(name, str):
            if name in self.keys():
                return getattr(self, name)
            raise KeyError(name)
        if isinstance(self, tuple):
            return tuple.__getitem__(self, name)
        fields = ", ".join(self.keys())
        raise StructureError(
            expected=f"a field of {type(self).__name__} by its name: {fields}",
            got=f"the position {name!r}, as to unpack a tuple",
            remedy=f"Write result.{self.keys()[0]}.",
        )

    def __contains__(self, name: object) -> bool:
        """Whether there is a field of this name."""
        if isinstance(self, tuple) and not isinstance(name, str):
            return tuple.__contains__(self, name)
        return name in self.keys()

    def get(self, name: str, default: Any = None) -> Any:
        """A field by its name; the default if there is none."""
        return getattr(self, name) if name in self.keys() else default

    def items(self) -> list[tuple[str, Any]]:
        """The names and values of the fields."""
        return [(name, self[name]) for name in self.keys()]

    def keys(self) -> Sequence[str]:
        """The names of the fields."""
        fields = getattr(self, "_fields", None) or getattr(self, "__dataclass_fields__", {})
        return [name for name in fields if not name.startswith("_")]

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join([type(self).__name__, *(f"  {n:{width}}  {text}" for n, text in rows)])

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        values = [(name, getattr(self, name)) for name in self.keys()]
        return [(name, summary(value)) for name, value in values if value is not None]


class OneLine:
    """The base of what prints in one line, in a notebook as well."""

    def _repr_html_(self) -> str:
        return f"<code>{html.escape(repr(self))}</code>"


def html_table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of names and texts for notebooks.

    >>> html_table("x", [("size", "< 3")])
    '<table><caption>x</caption><tr><th>size</th><td>&lt; 3</td></tr></table>'
    """
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption>{''.join(cells)}</table>"


def pyplot() -> Any:
    """The module `matplotlib.pyplot`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError(
            expected="matplotlib", got=str(error), remedy="pip install 'hesse[report]'"
        ) from error
    return pyplot


def summary(value: Any) -> str:
    """A value in one line.

    >>> summary([1, 2, 3]), summary(0.25)
    ('1, 2, 3', '0.25')
    """
    if isinstance(value, Enum):
        return f"{value.name}: {value.value}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        return _cut(", ".join(f"{key}: {summary(entry)}" for key, entry in value.items()))
    if isinstance(value, (list, tuple)):
        return f"{len(value)} entries: {_ends(value)}" if len(value) > _ENTRIES else _ends(value)
    return _cut(repr(value) if not isinstance(value, str) else value)


def _tensor(value: Any) -> str:
    if hasattr(value, "to_local"):  # a `DTensor`: what shows all of it is a call of all processes
        return f"sharded tensor of shape {tuple(value.shape)}, here a {_tensor(_part(value))}"
    if value.ndim == 0:
        return f"{float(value):.6g}"
    entries = value.detach().reshape(-1)
    half = _ENTRIES // 2
    ends = entries if len(entries) <= _ENTRIES else torch.cat([entries[:half], entries[-half:]])
    text = _listed([f"{number:.4g}" for number in ends.tolist()], len(entries))
    return f"tensor of shape {tuple(value.shape)}: {text}"


def _part(value: Any) -> Tensor:
    """The part of a sharded tensor that this process has."""
    return value.detach().to_local()


def _ends(values: Sequence[Any]) -> str:
    half = _ENTRIES // 2
    ends = values if len(values) <= _ENTRIES else [*values[:half], *values[-half:]]
    return _cut(_listed([summary(value) for value in ends], len(values)))


def _listed(words: list[str], count: int) -> str:
    half = _ENTRIES // 2
    return ", ".join(words if len(words) == count else [*words[:half], "...", *words[half:]])


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
