# SPDX-License-Identifier: Apache-2.0
"""`DataVersion`: are tensors as they were?

What is computed from tensors that are not ours (data, what f closes over) holds for as long as
nobody writes to them; and what holds for a batch holds for one of the same content, which a loader
makes anew in every sweep. Torch counts the writes that go through it. A write by NumPy or C, and
memory that loses a bit, leave no trace: `BitSums` looks for these now and then.
"""

from __future__ import annotations

import time
import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hesse.errors import DataError
from hesse.vectors.raw import raw_bytes

# The sums of bits take at most this part of the time; what they take at least, in seconds for a
# tensor and for a byte.
BITS_PART, _TENSOR, _BYTE = 0.005, 1e-5, 5e-11

Versions = tuple[tuple[int, int], ...]


def versions(tensors: Iterable[Tensor]) -> Versions:
    """Changes when one of the tensors is written to, or given other memory.

    >>> x = torch.zeros(2)
    >>> before = versions([x])
    >>> versions([x]) == before, versions([x.add_(1.0)]) == before
    (True, False)
    """
    return tuple((_address(t), 0 if t.is_inference() else t._version) for t in tensors)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)


@dataclass(frozen=True)
class DataVersion:
    """Tensors at a moment, which are not held on to.

    >>> x = torch.arange(3.0)
    >>> version = DataVersion.of([x])
    >>> version.matches([x]), version.matches([x.clone()]), version.matches([x.flip(0)])
    (True, True, False)
    """

    references: tuple[weakref.ref[Tensor], ...]
    versions: Versions
    contents: tuple[int, ...] | None
    """None for tensors that stay: others of their content are not to be expected."""

    @staticmethod
    def of(tensors: Sequence[Tensor], *, stay: bool = False) -> DataVersion:
        """What there is to be remembered of them; reads them once, unless they `stay`."""
        references = tuple(weakref.ref(tensor) for tensor in tensors)
        return DataVersion(references, versions(tensors), None if stay else _contents(tensors))

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, not written to since, or others of their content."""
        return self.match(tensors) is self

    def match(self, tensors: Sequence[Tensor]) -> DataVersion:
        """The version of these: this one if it knows them, and a new one otherwise."""
        if len(tensors) == len(self.references):
            same = all(ref() is t for ref, t in zip(self.references, tensors, strict=True))
            if same and versions(tensors) == self.versions:
                return self
        new = DataVersion.of(tensors, stay=self.contents is None)
        return self if new.contents == self.contents is not None else new


def _contents(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(map(_checksum, tensors))


def _checksum(tensor: Tensor) -> int:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    return zlib.crc32(raw_bytes(plain.cpu()).numpy().data)


# -- Bits ------------------------------------------------------------------------------------------


class Computed(Protocol):
    """Something that was computed from tensors, or is computed from them at every call."""

    @property
    def tensors(self) -> list[Tensor]:
        """These tensors."""
        ...


class BitSums:
    """The bits of the tensors behind some products, added up as integers, and when to look again.

    A sum takes one read of the memory, a product several.
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[Computed, list[int]]] = {}
        self._next: float | None = None

    def check(self, products: Sequence[Computed]) -> None:
        """Raise if a tensor has changed since it was seen first; looks when that is due."""
        now = time.perf_counter()
        if self._next is not None and now < self._next:
            return
        if self._next is not None:
            self._compare(products)
        tensors = [tensor for product in products for tensor in product.tensors]
        price = sum(_TENSOR + _BYTE * tensor.nbytes for tensor in tensors)
        took = time.perf_counter() - now
        # A wait for the processor is no reason to look much later.
        self._next = now + took + min(max(took, price), 4 * price) / BITS_PART

    def _compare(self, products: Sequence[Computed]) -> None:
        before, self._sums = self._sums, {}
        for index, product in enumerate(products):
            sums = bit_sums(product.tensors)
            known, expected = before.get(index, (None, []))
            if known is product and sums != expected:
                count = sum(a != b for a, b in zip(sums, expected, strict=True))
                raise DataError(
                    expected="residuals and data with the bits that they had at the first product",
                    got=f"other bits in {count} of {len(sums)} tensors, to which nobody wrote by "
                    "torch",
                    remedy="Products since then may be wrong; make a new operator. Write to data "
                    "by torch, not by NumPy; if nobody does, test the memory of this machine.",
                )
            self._sums[index] = product, sums


def bit_sums(tensors: Iterable[Tensor]) -> list[int]:
    """The sum of the bits of each tensor, as integers of 64 bits that wrap around.

    >>> x = torch.ones(3)
    >>> before = bit_sums([x])
    >>> x.numpy()[0] = 2.0
    >>> bit_sums([x]) == before
    False
    """
    sums = [_bit_sum(tensor) for tensor in tensors]
    return torch.stack(sums).tolist() if sums else []


def _bit_sum(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    data = raw_bytes(plain)
    start = min(-data.storage_offset() % 8, len(data))
    stop = start + (len(data) - start) // 8 * 8
    total = data[:start].sum() + data[stop:].sum()
    return (total + data[start:stop].view(torch.int64).sum() if stop > start else total).cpu()
