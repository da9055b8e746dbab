# SPDX-License-Identifier: Apache-2.0
"""`method=`: an object with the options of a method, or the name of its default instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, check_choice
from hesse.result import OneLine

MethodT = TypeVar("MethodT")


def find_method(method: Any, defaults: Mapping[str, MethodT], required: str) -> MethodT:
    """The default instance of that name, or the object itself if it has the method `required`."""
    if isinstance(method, str):
        check_choice("method", method, list(defaults))
        return defaults[method]
    if hasattr(method, required) and not isinstance(method, type):
        return method
    names = ", ".join(map(repr, defaults))
    kinds = [type(default).__name__ for name, default in defaults.items() if name != "auto"]
    raise ArgumentError(
        expected=f"method to be one of {names}, or an instance of {', '.join(kinds)}",
        got=repr(method),
        remedy=f"Give method={kinds[-1]}(), or leave it out.",
    )


@dataclass(frozen=True, repr=False)
class Hyperparameters(OneLine):
    """The base of a method object: a frozen dataclass whose options are checked when it is made.

    It prints the options that are not the default. A checkpoint knows a method by this text.

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
        """Replace options by what was made of them when they were checked."""
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
