# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a long computation: a progress bar, a callback that may stop it, Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

Callback = Callable[[Any], Any]
"""Called with the state after every iteration; a true result stops the iteration."""


@contextmanager
def progress_bar(enabled: bool, title: str, total: int | None = None) -> Iterator[tqdm]:
    """A tqdm bar on standard error, silent unless enabled."""
    with tqdm(total=total, desc=title, disable=not enabled, leave=False) as bar:
        yield bar


def asks_to_stop(callback: Callback | None, state: Any) -> bool:
    """Whether the callback, if there is one, wants the iteration to end."""
    return callback is not None and bool(callback(state))
