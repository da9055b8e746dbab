# SPDX-License-Identifier: Apache-2.0
"""Which of the processes that were started together, as torchrun does, speaks for all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from hesse.errors import HesseError


def number(name: str, default: int) -> int:
    """An integer that torchrun sets in the environment; the default where it did not."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def rank_and_size() -> tuple[int, int]:
    """Of this process: its rank among those of torch.distributed or, before that, of torchrun."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return number("RANK", 0), number("WORLD_SIZE", 1)


@contextmanager
def said_once() -> Iterator[None]:
    """What all processes find wrong in the same words is said by the first one of each machine."""
    try:
        yield
    except HesseError as error:
        if number("LOCAL_RANK", rank_and_size()[0]) == 0:
            raise
        from hesse.ranks import RankError

        raise RankError(expected=error.expected, got=error.got, remedy=error.remedy) from error


@contextmanager
def group_of_script() -> Iterator[None]:
    """Destroy the process group at the end, if a script within has made it."""
    import torch.distributed as dist

    was_there = not dist.is_available() or dist.is_initialized()
    yield
    if not was_there and dist.is_initialized():
        dist.destroy_process_group()
