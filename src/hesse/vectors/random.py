# SPDX-License-Identifier: Apache-2.0
"""Random entries of flat vectors: normal numbers and signs. `Space` makes vectors of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
from torch import Tensor

from hesse.errors import ArgumentError, kind_of

Draw = Callable[[int, torch.dtype, torch.device, torch.Generator | None], Tensor]
"""(n, dtype, device, generator) -> n independent numbers."""

_BLOCK = 1 << 16
_SIGNS = 1 - 2 * (torch.arange(256, device="cpu")[:, None] >> torch.arange(8, device="cpu") & 1)
"""The signs that the bits of a byte stand for."""


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
    eight = _SIGNS.to(words.device, dtype)
    signs = eight.index_select(0, words.view(torch.uint8).int())
    return signs.view(-1)[:n].to(device)


def drawn_seed(generator: torch.Generator | None) -> int:
    """A seed for further generators, drawn from this one, or from the global one."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), generator=generator, device=device))


class Stream:
    """n independent numbers, of which only the blocks are drawn that are asked for.

    Each block has a generator of its own, whose seed is made of one number from the given generator
    and the number of the block. Up to one block they are the numbers that `draw` gives at once.
    """

    def __init__(
        self,
        draw: Draw,
        n: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | None,
    ) -> None:
        self._draw, self._kind = draw, (dtype, device)
        source = _source(device, generator)
        self._last: tuple[int, Tensor] = -1, torch.empty(0)
        if n <= _BLOCK:
            self._last = 0, draw(n, dtype, device, generator)
            return
        self._seed = int(torch.randint(2**63 - 1, (), generator=generator, device=source))
        self._source = torch.Generator(source)

    def entries(self, start: int, stop: int) -> Tensor:
        """The numbers from `start` to `stop`."""
        first, last = start // _BLOCK, max(start, stop - 1) // _BLOCK
        numbers = torch.cat([self._block(number) for number in range(first, last + 1)])
        return numbers[start - first * _BLOCK : stop - first * _BLOCK]

    def _block(self, number: int) -> Tensor:
        if self._last[0] != number:
            state = numpy.random.SeedSequence((self._seed, number)).generate_state(1, "uint64")
            generator = self._source.manual_seed(int(state[0]) % 2**63)
            self._last = number, self._draw(_BLOCK, *self._kind, generator)
        return self._last[1]


def _source(device: torch.device, generator: torch.Generator | None) -> torch.device:
    """The device to draw on: the generator's, so that a CPU seed means one vector everywhere."""
    check_generator(generator)
    return generator.device if generator is not None else device


def check_generator(generator: torch.Generator | None) -> None:
    """Raise unless this is a generator or None."""
    if not isinstance(generator, torch.Generator | None):
        raise ArgumentError(
            expected="generator to be a torch.Generator",
            got=kind_of(generator),
            remedy="Give torch.Generator().manual_seed(0), or leave it out for the global one.",
        )
