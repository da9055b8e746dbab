# SPDX-License-Identifier: Apache-2.0
"""`method=`: an object with the options of a method, or the name of its default instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hesse.errors import ArgumentError, check_choice

Method = TypeVar("Method")


def find_method(method: Any, defaults: Mapping[str, Method], estimates: str) -> Method:
    """The default instance of that name, or the method itself if it has the method `estimates`."""
    if isinstance(method, str):
        check_choice("method", method, list(defaults))
        return defaults[method]
    if hasattr(method, estimates) and not isinstance(method, type):
        return method
    names = ", ".join(map(repr, defaults))
    kinds = [type(default).__name__ for name, default in defaults.items() if name != "auto"]
    raise ArgumentError(
        expected=f"method to be one of {names}, or an instance of {', '.join(kinds)}",
        got=repr(method),
        remedy=f"Give method={kinds[-1]}(), or leave it out.",
    )
