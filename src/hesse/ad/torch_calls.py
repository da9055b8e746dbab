# SPDX-License-Identifier: Apache-2.0
"""`TorchCalls`: what a function of the user's calls of torch: replaced, noted, and counted.

Operations without right derivatives are composed of others (`decompositions`). While the first
product is taken, kinks (`kinks`) and operations whose backward pass may be no derivative
(`suspects`) are noted. Draws from a generator of the user's own, which cannot be found otherwise,
are counted; those of torch, of Python and of NumPy have a state that can be looked at. What remains
unseen are generator objects of Python and NumPy.

>>> import torch
>>> with first_look() as look, TorchCalls(), seen():
...     _ = torch.zeros(2, requires_grad=True).abs()
>>> look.kinks
{'abs'}
"""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hesse.ad.decompositions import DECOMPOSITIONS
from hesse.ad.kinks import KINKED, OF_RESULT, kink
from hesse.ad.suspects import SUSPECTS, suspect
from hesse.dispatch import is_recorded
from hesse.surroundings import is_checkpointed


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


class _Own(threading.local):
    """What a thread has drawn from generators of the user's own."""

    draws = 0


_own = _Own()


class TorchCalls(TorchFunctionMode):
    """Within it, functions of torch are replaced by what has right derivatives, and seen."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the operation, or what stands for it."""
        kwargs, run, look = kwargs or {}, DECOMPOSITIONS.get(func, func), _seeing.get()
        if run is not func and is_checkpointed():
            run = func
        if kwargs.get("generator") is not None:
            _own.draws += 1
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


# -- Draws -----------------------------------------------------------------------------------------


def generator_states(*, quickly: bool = False) -> dict[str, Any]:
    """What changes when random numbers are drawn; `quickly`: of torch only, not 60 microseconds.

    >>> before = generator_states()
    >>> _ = torch.rand(1)
    >>> same_states(before, generator_states()), same_states(before, before)
    (False, True)
    """
    states = {"own": _own.draws, "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states if quickly else {**states, **states_outside_of_torch()}


def states_outside_of_torch() -> dict[str, Any]:
    """What changes when Python's or NumPy's own generator is drawn from."""
    states: dict[str, Any] = {"random": random.getstate()}
    get_state = getattr(sys.modules.get("numpy.random"), "get_state", None)
    if get_state is not None:  # another thread may be importing NumPy
        states["numpy"] = get_state(legacy=False)
    return states


def same_states(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether nothing was drawn between the two looks, from generators that were there at both."""
    return all(_equal(before[name], after[name]) for name in before.keys() & after.keys())


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(_equal(a[name], b[name]) for name in a)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool((a == b).all()) if hasattr(a, "dtype") else a == b
