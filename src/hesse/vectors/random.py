# SPDX-License-Identifier: Apache-2.0
"""Random entries of flat vectors: normal numbers and signs. `Space` makes vectors of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.errors import ArgumentError


def normal_entries(
    n: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """n independent N(0, 1) numbers."""
    source = _source(device, generator)
    return torch.randn(n, generator=generator, dtype=dtype, device=source).to(device)


def random_signs(
    n: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """n independent signs, +1 or -1 with probability 1/2 each; each takes one random bit."""
    words = torch.empty(-(-n // 64), dtype=torch.int64, device=_source(device, generator))
    words.random_(-(2**63), None, generator=generator)
    byte = torch.arange(256, device=words.device)
    eight = 1 - 2 * (byte[:, None] >> torch.arange(8, device=words.device) & 1)
    signs = eight.to(dtype).index_select(0, words.view(torch.uint8).int())
    return signs.view(-1)[:n].to(device)


def _source(device: torch.device, generator: torch.Generator | None) -> torch.device:
    """The device to draw on: the generator's, so that a CPU seed means one vector everywhere."""
    check_generator(generator)
    return generator.device if generator is not None else device


def check_generator(generator: torch.Generator | None) -> None:
    """Raise unless this is a generator or None."""
    if not isinstance(generator, torch.Generator | None):
        raise ArgumentError(
            expected="generator to be a torch.Generator",
            got=f"a {type(generator).__name__}",
            remedy="Give torch.Generator().manual_seed(0), or leave it out for the global one.",
        )
