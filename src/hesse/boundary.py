# SPDX-License-Identifier: Apache-2.0
"""The boundary between a user's code and the library: it adds the user's call to an error.

Inner functions raise errors without the call. A public function is marked `@public`, which adds it,
so that no inner function carries it along, and which sets aside the user's autocast, default device
and anomaly detection. `warn` makes a warning point to the user's line.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from numbers import Number
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from hesse.errors import HesseError
from hesse.surroundings import is_surrounded, set_aside

P = ParamSpec("P")
T = TypeVar("T")

_PACKAGE = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep


def public(call: str, *, nested: bool = True) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function that users call; an error raised inside it then says `call`.

    Args:
        call: how the call reads, such as "hesse.solve({A}, b, method={method})"; arguments in
            braces are filled in, which is done for an error only.
        nested: whether the function also names the errors of calls from inside the library. False
            suits what the library itself uses everywhere, such as `Space.flatten` and `A @ v`:
            there the public function that the user called names the error.

    The innermost public function that an error passes names it.

    >>> @public("half({n})")
    ... def half(n):
    ...     raise HesseError(expected="an even n", got=str(n), remedy="Give another.")
    >>> half(3)
    Traceback (most recent call last):
    hesse.errors.HesseError: half(3)
      expected: an even n
      got:      3
      remedy:   Give another.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def bounded(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                if is_surrounded():
                    with set_aside():
                        return function(*args, **kwargs)
                return function(*args, **kwargs)
            except HesseError as error:
                if not error.call and (nested or not _is_ours(sys._getframe(1))):
                    error.call = _filled(call, function, args, kwargs)
                raise

        return bounded

    return decorate


def _is_ours(frame: FrameType) -> bool:
    """Whether this frame runs code of the library."""
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _filled(call: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """The call with its arguments in the place of their names."""
    if "{" not in call:
        return call
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return call.format_map({name: _brief(value) for name, value in bound.arguments.items()})


def _brief(value: Any) -> str:
    """An argument in a few words."""
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if value is None or isinstance(value, (str, Number)):
        return repr(value)
    if hasattr(value, "_matvec"):
        return repr(value).partition("\n")[0]
    return type(value).__name__


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the code outside of Hesse that led here, by way of torch or not."""
    depth, frame = 1, sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith((_PACKAGE, _TORCH)):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
