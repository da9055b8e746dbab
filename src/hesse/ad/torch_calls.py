# SPDX-License-Identifier: Apache-2.0
"""`TorchCalls`: what a function of the user's calls of torch: replaced, noted, and counted.

Operations without right derivatives are composed of others (`decompositions`). While the first
product is taken, kinks (`kinks`) and operations whose backward pass may be no derivative
(`suspects`) are noted. Draws from a generator of the user's own, which cannot be found otherwise,
are counted.

>>> import torch
>>> with first_look() as look, TorchCalls(), seen():
...     _ = torch.zeros(2, requires_grad=True).abs()
>>> look.kinks
{'abs'}
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch.overrides import TorchFunctionMode

from hesse.ad.decompositions import STAND_INS
from hesse.ad.kinks import KINKED, OF_RESULT, kink
from hesse.ad.suspects import SUSPECTS, suspect
from hesse.dispatch import is_recorded


@dataclass
class FirstLook:
    """What was noted: suspicious operations, each with what to do about it, and kinks."""

    suspects: dict[str, str] = field(default_factory=dict)
    kinks: set[str] = field(default_factory=set)

    def call(self, func: Any, run: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """run(*args, **kwargs), which stands for `func`, after a look at it."""
        name = getattr(func, "__name__", "").removeprefix("linalg_")
        is_kinked, in_result = name in KINKED, name in OF_RESULT
        if is_kinked and not in_result:  # before an operation in place writes to its argument
            self._look_for_kink(name, args, kwargs, None)
        result = run(*args, **kwargs)
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


# The first look that is taken, and the one that sees what is called now.
_look: ContextVar[FirstLook | None] = ContextVar("hesse_first_look", default=None)
_seeing: ContextVar[FirstLook | None] = ContextVar("hesse_seeing", default=None)


class TorchCalls(TorchFunctionMode):
    """Within it, functions of torch are replaced by what has right derivatives, and seen."""

    draws = 0
    """How often a generator of the user's own has been drawn from."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation, or what stands for it."""
        kwargs, run, look = kwargs or {}, STAND_INS.get(func, func), _seeing.get()
        if kwargs.get("generator") is not None:
            TorchCalls.draws += 1
        return run(*args, **kwargs) if look is None else look.call(func, run, args, kwargs)


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
    tokens = _look.set(None), _seeing.set(look)  # products inside f are their own
    try:
        yield
    finally:
        _look.reset(tokens[0])
        _seeing.reset(tokens[1])
