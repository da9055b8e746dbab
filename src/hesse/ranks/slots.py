# SPDX-License-Identifier: Apache-2.0
"""What every rank tells all others in the reduction of a product.

Behind its part of the result each rank writes four numbers into a place of its own, where all
others write zeros, so that the sum over ranks shows all of them to all. No other collective is
needed to learn that a rank failed, that ranks multiply different vectors, or that one wants to end.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from hesse.errors import DerivativeError, NonFiniteError
from hesse.ranks.errors import is_outside_domain, is_unsuitable

WIDTH = 4
_PRIME = 1_048_573  # numbers below it are exact in float32
_SAMPLED = 1024


class Fault(IntEnum):
    """What kept a rank from computing its part."""

    NONE = 0
    ERROR = 1
    NOT_FINITE = 2
    MEMORY = 3
    DOMAIN = 4
    DERIVATIVE = 5
    UNSUITABLE = 6

    @staticmethod
    def of(error: Exception | None) -> Fault:
        """The kind of an error."""
        if error is None:
            return Fault.NONE
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return Fault.MEMORY
        if isinstance(error, NonFiniteError):
            return Fault.NOT_FINITE
        if isinstance(error, DerivativeError):
            return Fault.DERIVATIVE
        if is_unsuitable(error):
            return Fault.UNSUITABLE
        return Fault.DOMAIN if is_outside_domain(error) else Fault.ERROR


@dataclass(frozen=True)
class Slots:
    """The four numbers of each rank, shape (ranks, 4)."""

    numbers: Tensor

    @staticmethod
    def of(rank: int, size: int, numbers: tuple[int, int, int, int], like: Tensor) -> Tensor:
        """Those of one rank among zeros: flat, to be summed over the ranks."""
        slots = torch.zeros(size, WIDTH, dtype=torch.float64)
        slots[rank] = torch.tensor(numbers, dtype=torch.float64)
        return slots.view(-1).to(like)

    @property
    def vectors(self) -> list[int]:
        """The checksums of the vectors that were multiplied."""
        return self._column(0)

    @property
    def steps(self) -> list[int]:
        """How many reductions each rank has taken part in."""
        return self._column(1)

    @property
    def faults(self) -> list[int]:
        """The `Fault` of each rank."""
        return self._column(2)

    @property
    def wishes(self) -> list[int]:
        """Whether, and why, each rank wants to end."""
        return self._column(3)

    def _column(self, index: int) -> list[int]:
        return self.numbers[:, index].round().long().tolist()


def checksum(v: Tensor | None) -> int:
    """A number below 2^20 of some entries of a tensor, spread evenly over it."""
    if v is None or v.numel() == 0:
        return 0
    flat = v.detach().reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    sample = flat[::step].cpu().clone(memory_format=torch.contiguous_format)
    return zlib.crc32(sample.view(torch.uint8).numpy().tobytes()) % _PRIME


def step_number(count: int) -> int:
    """A count as a number that is exact in float32."""
    return count % _PRIME
