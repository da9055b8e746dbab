# SPDX-License-Identifier: Apache-2.0
"""`Hyperparameters`: the base of all method objects, whose options are checked when it is made."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from torch import Tensor

from hesse.boundary import public


@dataclass(frozen=True, repr=False)
class Hyperparameters:
    """A frozen dataclass of options, printed in one line with those that are not the default.

    >>> @dataclass(frozen=True, repr=False)
    ... class Power(Hyperparameters):
    ...     steps: int = 10
    ...     shift: float = 0.0
    >>> Power(), Power(shift=1.0)
    (Power(), Power(shift=1.0))
    """

    @public("hesse.{self}(...)")
    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """Raise HesseError for an option that is out of range."""

    def _set(self, **options: Any) -> None:
        """Replace options by what they stand for, while they are checked."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        options = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        shown = [f"{name}={_brief(v)}" for name, v, default in options if not _same(v, default)]
        return f"{type(self).__name__}({', '.join(shown)})"


def _same(value: Any, default: Any) -> bool:
    """Whether an option has its default value."""
    if default is MISSING or isinstance(value, Tensor):
        return False
    return value is default or (isinstance(value, type(default)) and bool(value == default))


def _brief(value: Any) -> str:
    """An option in a few words, the same in every process."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if callable(value) and not hasattr(value, "_matvec"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return repr(value)
