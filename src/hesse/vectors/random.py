# SPDX-License-Identifier: Apache-2.0
"""Flat vectors of random entries: normal ones and signs."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.errors import ArgumentError
from hesse.vectors.space import Space


def gaussian(space: Space, generator: torch.Generator | None = None) -> Tensor:
    """A flat vector of independent N(0, 1) entries."""
    device = _home(space, generator)
    v = torch.randn(space.n, generator=generator, dtype=space.dtype, device=device)
    return v.to(space.device)


def rademacher(space: Space, generator: torch.Generator | None = None) -> Tensor:
    """A flat vector of independent signs, +1 or -1 with probability 1/2 each: a bit each."""
    words = torch.empty(-(-space.n // 64), dtype=torch.int64, device=_home(space, generator))
    words.random_(-(2**63), None, generator=generator)
    byte = torch.arange(256, device=words.device)
    eight = 1 - 2 * (byte[:, None] >> torch.arange(8, device=words.device) & 1)
    signs = eight.to(space.dtype).index_select(0, words.view(torch.uint8).int())
    return signs.view(-1)[: space.n].to(space.device)


def _home(space: Space, generator: torch.Generator | None) -> torch.device:
    # Drawn where the generator lives: a CPU seed then gives the same probe on every device.
    if not isinstance(generator, torch.Generator | None):
        call, got = f"generator={generator!r}", f"a {type(generator).__name__}"
        remedy = "Give torch.Generator().manual_seed(0), or leave it out for the global one."
        raise ArgumentError(call, expected="a torch.Generator", got=got, remedy=remedy)
    return generator.device if generator is not None else space.device
