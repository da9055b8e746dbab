# SPDX-License-Identifier: Apache-2.0
"""A long computation as a person sees it: a bar, a callback that may stop it, limits, Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

from tqdm import tqdm

from hesse.errors import (
    ArgumentError,
    Status,
    check_callable,
    check_count,
    check_flags,
    check_positive,
)

Callback = Callable[[Any], Any]
"""Called with the state after every iteration; a true result stops the iteration."""


class State(Protocol):
    """What a `Run` looks at after every step."""

    @property
    def products(self) -> int:
        """Products taken so far."""
        ...


class Run:
    """The limits of a long computation and what is shown of it.

    As a context it turns Ctrl-C into a status: the block is left, and `status` is INTERRUPTED.

    Args:
        title: what the bar is called.
        max_products, max_seconds: the limits; None for none.
        callback: called with the state after every step; a true result stops.
        progress: show a bar of the products.
        checkpoint: the file that the state is saved in, by `hesse.checkpoint`; None for none.
        total: the products at which the bar is full, if not `max_products`.

    >>> from types import SimpleNamespace
    >>> with Run("count", max_products=3) as run:
    ...     state = SimpleNamespace(products=0)
    ...     while run.goes_on(state):
    ...         state.products += 1
    >>> state.products, run.status.name
    (3, 'MAX_PRODUCTS')
    """

    def __init__(
        self,
        title: str,
        *,
        max_products: int | None = None,
        max_seconds: float | None = None,
        callback: Callback | None = None,
        progress: bool = False,
        checkpoint: str | os.PathLike | None = None,
        total: int | None = None,
    ) -> None:
        self.status = Status.UNFINISHED
        self.before = 0  # products of earlier parts of the same computation
        self.reserved = 0  # products that are kept for the end, after the iteration
        self.max_products: float = math.inf
        call = f"{title}(max_products={max_products!r}, max_seconds={max_seconds!r})"
        if max_products is not None:
            self.max_products = check_count("max_products", max_products, 1, call)
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        check_positive(call, max_seconds=self.max_seconds)
        check_callable(call, callback=callback)
        check_flags(call, progress=progress)
        self.title, self.checkpoint = title, checkpoint
        self._callback, self._enabled = callback, progress
        self._total = max_products if total is None else total
        self._began = time.monotonic()
        self._bar: tqdm | None = None

    def __enter__(self) -> Run:
        self._bar = tqdm(
            total=self._total, desc=self.title, disable=not self._enabled, leave=False
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> bool:
        if self._bar is not None:
            self._bar.close()
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            return False
        self.status = Status.INTERRUPTED
        return True

    def left(self, taken: int = 0) -> float:
        """How many products remain when this part of the computation has taken so many."""
        return self.max_products - self.before - taken

    def require(self, count: int, call: str, what: str) -> None:
        """Raise unless so many products remain; `what` says who takes them."""
        if self.left() < count:
            raise ArgumentError(
                call,
                expected=f"max_products >= {self.before + count}, which {what}",
                got=str(self.max_products),
                remedy="Raise it, or leave it out.",
            )

    def allows(self, state: State, count: int = 1) -> bool:
        """Whether so many products more leave what is reserved; if not, `status` says so."""
        enough = count + self.reserved <= self.left(state.products)
        if not enough:
            self.status = Status.MAX_PRODUCTS
        return enough

    def goes_on(self, state: State) -> bool:
        """Whether to take another step; if not, `status` says why. Does not call the callback."""
        self.show(state)
        if self.allows(state) and time.monotonic() - self._began >= self.max_seconds:
            self.status = Status.MAX_SECONDS
        return self.status is Status.UNFINISHED

    def after_step(self, state: State) -> bool:
        """As `goes_on`, and the callback is asked first."""
        if asks_to_stop(self._callback, state):
            self.status = Status.STOPPED
        return self.goes_on(state) if self.status is Status.UNFINISHED else False

    def show(self, state: State) -> None:
        """Bring the bar up to date."""
        if self._bar is not None:
            self._bar.update(self.before + state.products - self._bar.n)


@contextmanager
def progress_bar(enabled: bool, title: str, total: int | None = None) -> Iterator[tqdm]:
    """A tqdm bar on standard error, silent unless enabled."""
    with tqdm(total=total, desc=title, disable=not enabled, leave=False) as bar:
        yield bar


def asks_to_stop(callback: Callback | None, state: Any) -> bool:
    """Whether the callback, if there is one, wants the iteration to end."""
    return callback is not None and bool(callback(state))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, which changes in place what belongs together."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # others are not interrupted, or nothing is
        return
    caught: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if caught:
        handler(*caught[-1])
