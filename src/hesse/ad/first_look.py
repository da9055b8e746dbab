# SPDX-License-Identifier: Apache-2.0
"""`FirstLook`: what f calls, seen while the first product is taken.

>>> import torch
>>> with first_look() as look, seen():
...     _ = torch.zeros(2, requires_grad=True).abs()
>>> look.kinks
{'abs'}
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch.overrides import TorchFunctionMode

from hesse.ad.kinks import KINKED, OF_RESULT, kink
from hesse.ad.suspects import SUSPECTS, suspect
from hesse.dispatch import is_recorded


class FirstLook(TorchFunctionMode):
    """Within it, suspicious operations are noted, each with what to do about it, and kinks."""

    def __init__(self) -> None:
        super().__init__()
        self.suspects: dict[str, str] = {}
        self.kinks: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").removeprefix("linalg_")
        is_kinked, in_result = name in KINKED, name in OF_RESULT
        if is_kinked and not in_result:  # before an operation in place writes to its argument
            self._look_for_kink(name, args, kwargs, None)
        result = func(*args, **kwargs)
        if is_kinked and in_result:
            self._look_for_kink(name, args, kwargs, result)
        if func in SUSPECTS:
            self.suspects.update(suspect(func, args, kwargs))
        return result

    def _look_for_kink(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        if name in self.kinks or is_recorded():  # a trace would note the look as well
            return
        if kink(name, args, kwargs, result):
            self.kinks.add(name)


_look: ContextVar[FirstLook | None] = ContextVar("hesse_first_look", default=None)


@contextmanager
def first_look() -> Iterator[FirstLook]:
    """Within it, functions of the user's are seen."""
    look = FirstLook()
    token = _look.set(look)
    try:
        yield look
    finally:
        _look.reset(token)


def seen() -> AbstractContextManager[Any]:
    """The context to call a function of the user's in: it is seen if there is a first look."""
    look = _look.get()
    return nullcontext() if look is None else _within(look)


@contextmanager
def _within(look: FirstLook) -> Iterator[None]:
    token = _look.set(None)  # products inside f are their own
    try:
        with look:
            yield
    finally:
        _look.reset(token)
