# SPDX-License-Identifier: Apache-2.0
"""`Run`: the arguments that all long computations share, and how they stop one."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
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
    kind_of,
)

Callback = Callable[[Any], Any]
"""Called with the state after every iteration; a true result stops the iteration."""

FilePath = str | os.PathLike | None
"""Where to save the state of a run; None saves nothing."""


class _Active(threading.local):
    """The innermost run that is a context now, in this thread."""

    run: Run | None = None


_active = _Active()


class State(Protocol):
    """What a `Run` reads after every step."""

    @property
    def products(self) -> int:
        """Products taken so far."""
        ...


class _Ranks(Protocol):
    """Processes that take every step together, see `hesse.ranks`."""

    rank: int


class _Bar:
    """A progress bar on standard error; gone if that is closed, for the result is worth more."""

    def __init__(self, total: int | None, title: str) -> None:
        self._bar: tqdm | None = None
        with self._if_open():
            self._bar = tqdm(total=total, desc=title, leave=False)

    def move_to(self, count: int) -> None:
        """Show so many products."""
        with self._if_open():
            if self._bar is not None:
                self._bar.update(count - self._bar.n)

    def close(self) -> None:
        """Take it away."""
        with self._if_open():
            if self._bar is not None:
                self._bar.close()

    @contextmanager
    def _if_open(self) -> Iterator[None]:
        """Without the errors of a stream that is closed, or is None."""
        try:
            yield
        except (OSError, ValueError, AttributeError):
            if self._bar is not None:
                self._bar.disable = True  # it does not try again when it is deleted
            self._bar = None


class Run:
    """The limits of a long computation, and how its progress is shown.

    All long computations of the library take the arguments `max_products` to `checkpoint`; they are
    documented here. A computation that is stopped returns its best result so far, whose status says
    what stopped it. Used as a context, a run turns Ctrl-C into the status INTERRUPTED, unless it is
    part of another run, such as a solve for a product with an inverse: Ctrl-C then ends the outer
    run, which has a result to return.

    Args:
        title: the title of the progress bar.
        max_products: largest number of products with the operator, at least 1; None for no limit.
        max_seconds: the iteration stops after the first step that ends later than this many
            seconds; None for no limit.
        callback: called with the state after every step; a true result stops the computation.
        progress: show a progress bar that counts products.
        checkpoint: path of a file to which the state is saved at intervals, and from which a run
            that was killed continues (see `hesse.checkpoint`); None saves nothing.
        total: the number of products at which the bar is full, if not `max_products`.

    Raises:
        ArgumentError: an argument is not of these kinds.

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
        checkpoint: FilePath = None,
        total: int | None = None,
    ) -> None:
        self.status = Status.UNFINISHED
        self.before = 0  # products of earlier stages of the same computation
        self.reserved = 0  # products that are kept for the end, after the iteration
        self.max_products: float = math.inf
        if max_products is not None:
            self.max_products = check_count("max_products", max_products, 1)
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        check_positive(max_seconds=self.max_seconds)
        check_callable(callback=callback)
        check_flags(progress=progress)
        self.checkpoint = check_path(checkpoint)
        self.title = title
        self._callback, self._enabled = callback, progress
        # Whether neither a limit of time nor a callback nor a checkpoint was given, on any rank.
        is_timeless = self.max_seconds == math.inf
        self.is_unobserved = is_timeless and callback is None and checkpoint is None
        self._total = max_products if total is None else total
        self._began = time.monotonic()
        self._bar: _Bar | None = None
        self._outer: Run | None = None
        # Where ranks share the run, none ends it alone: it wishes to, and all end it together.
        self._rank: int | None = None
        self._wish, self._handlers = 0, dict[int, Any]()
        self._failure: Exception | None = None  # of the callback
        self._parts, self._whole = list[Run](), self

    def __enter__(self) -> Run:
        self._outer, _active.run = _active.run, self
        is_first = self._rank is None or self._rank == 0
        self._bar = _Bar(self._total, self.title) if self._enabled and is_first else None
        if self._rank is not None:
            self._handle_signals()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> bool:
        outer, _active.run = self._outer, self._outer
        if self._bar is not None:
            self._bar.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        if kind is None and self._failure is not None:  # after the last product
            raise self._failure
        if kind is None or not issubclass(kind, KeyboardInterrupt) or outer is not None:
            return False
        self.status = Status.INTERRUPTED
        return True

    @property
    def is_unlimited(self) -> bool:
        """Whether neither a limit nor a callback nor a checkpoint was given."""
        return self.max_products == math.inf and self.is_unobserved

    def left(self, taken: int = 0) -> float:
        """How many products remain after `taken` in this stage of the computation."""
        return self.max_products - self.before - taken

    def rest(self, taken: int) -> Run:
        """What these limits leave after `taken` products, at least one, for a part of the run."""
        left, seconds = self.left(taken), self.max_seconds - (time.monotonic() - self._began)
        rest = Run(
            self.title,
            max_products=None if left == math.inf else max(int(left), 1),
            max_seconds=None if seconds == math.inf else max(seconds, 1e-9),
        )
        rest._rank, rest._whole = self._rank, self
        return rest

    def set_default_limit(self, products: int) -> None:
        """Limit the number of products, if the caller did not."""
        if self.max_products == math.inf:
            self.max_products = products

    def require(self, count: int, what: str) -> None:
        """Raise unless `count` products remain; `what` says for what."""
        if self.left() < count:
            raise ArgumentError(
                expected=f"max_products >= {self.before + count}, which {what}",
                got=str(self.max_products),
                remedy="Raise it, or leave it out.",
            )

    def allows(self, state: State, count: int = 1) -> bool:
        """Whether `count` more products are within the limit; if not, sets `status`."""
        enough = count + self.reserved <= self.left(state.products)
        if not enough:
            self.status = Status.MAX_PRODUCTS
        return enough

    def goes_on(self, state: State) -> bool:
        """Whether to take another step; if not, `status` says why. The callback is not called."""
        self.show(state)
        if self.allows(state) and self._rank is None and self._is_late:
            self.status = Status.MAX_SECONDS
        if self._rank is not None and self.status is Status.UNFINISHED:
            self.status = self._whole.status
        return self.status is Status.UNFINISHED

    def after_step(self, state: State) -> bool:
        """As `goes_on`, after calling the callback, which may stop the run."""
        try:
            if asks_to_stop(self._callback, state):
                if self._rank is not None:
                    self._wish = _STOP
                else:
                    self.status = Status.STOPPED
        except Exception as error:
            if self._rank is None:
                raise
            self._wish, self._failure = _FAILED, error
        return self.goes_on(state) if self.status is Status.UNFINISHED else False

    def show(self, state: State) -> None:
        """Update the bar."""
        if self._bar is not None:
            self._bar.move_to(self.before + state.products)

    @property
    def _is_late(self) -> bool:
        return time.monotonic() - self._began >= self.max_seconds

    # -- Runs that several ranks share (see `hesse.ranks`) -----------------------------------------

    @property
    def wish(self) -> int:
        """Why this rank wants to end the run: a number that grows with the urgency; 0 if not."""
        own = max(self._wish, _LATE if self._is_late else 0)
        parts = (part.wish for part in self._parts if part.status is Status.UNFINISHED)
        return max(own, *parts, 0)

    def share(self, ranks: _Ranks | None, *, is_observed: bool = False) -> None:
        """From now on no rank ends the run alone; only the first has a bar.

        The ranks learn of one another's wishes with the next product. None shares nothing.
        `is_observed`: whether another rank has a callback, say.
        """
        self.is_unobserved &= not is_observed
        if ranks is None or self._rank is not None:
            return
        self._rank = ranks.rank
        for part in self._parts:
            part.share(ranks)
        if self._bar is not None and self._rank > 0:
            self._bar.close()
            self._bar = None
        if self in _runs():
            self._handle_signals()

    def add_part(self, part: Run) -> Run:
        """Let a run that is no context end where all ranks end it; the part itself."""
        self._parts.append(part)
        part._rank = self._rank
        return part

    def with_outer(self) -> list[Run]:
        """The runs around this one, the outermost first, and this one."""
        return [*([] if self._outer is None else self._outer.with_outer()), self]

    def agree(self, wish: int) -> bool:
        """End the run, or its parts, on all ranks at the same product.

        An error of the callback is raised on its rank; elsewhere it is told by True.
        """
        if wish == _INTERRUPT:
            raise KeyboardInterrupt
        if wish == _FAILED:
            for run in (self, *self._parts):
                if run._failure is not None:
                    raise run._failure
            return True
        for run in self._parts or [self]:
            if run.status is Status.UNFINISHED:
                run.status = Status.MAX_SECONDS if wish == _LATE else Status.STOPPED
        return False

    def _handle_signals(self) -> None:
        if self._outer is None and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note_interrupt)

    def _note_interrupt(self, number: int, frame: FrameType | None) -> None:
        self._wish = _INTERRUPT


# Why a rank wants to end a run, by urgency.
_LATE, _STOP, _INTERRUPT, _FAILED = 1, 2, 3, 4
_REASONS = 5


def share_run(ranks: _Ranks) -> None:
    """Let the runs of this thread be ended by all ranks together."""
    for run in _runs():
        run.share(ranks)


def wish_to_end() -> int:
    """Which run this rank wants to end and why, as one number: the outermost such run; else 0."""
    for depth, run in enumerate(_runs()):
        if run.wish:
            return _REASONS * depth + run.wish
    return 0


def agree_to_end(wishes: list[int]) -> bool:
    """End the outermost run that a rank wants to end, for the most urgent of its reasons.

    Whether it is an error of a callback on another rank; that of this rank is raised.
    """
    given = [divmod(wish, _REASONS) for wish in wishes if wish]
    runs = _runs()
    if given:
        depth = min(depth for depth, _ in given)
        return runs[depth].agree(max(reason for at, reason in given if at == depth))
    return False


def _runs() -> list[Run]:
    """The runs of this thread that are contexts now, the outermost first."""
    return [] if _active.run is None else _active.run.with_outer()


def current_run() -> Run | None:
    """The innermost run in this thread that is a context now."""
    return _active.run


def check_path(path: FilePath) -> Path | None:
    """The path of a checkpoint; raises unless it is the path of a file or None."""
    if isinstance(path, FilePath):
        return None if path is None else Path(path)
    raise ArgumentError(
        expected="checkpoint to be the path of a file: a str or a pathlib.Path",
        got=kind_of(path),
        remedy="Leave it out for no checkpoint.",
    )


def asks_to_stop(callback: Callback | None, state: Any) -> bool:
    """Whether there is a callback and it asks for the end of the iteration."""
    return callback is not None and bool(callback(state))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block, so that an update in place is never left half done."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # only the main thread is interrupted, and only if there is a handler
        return
    caught: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if caught:
        handler(*caught[-1])
