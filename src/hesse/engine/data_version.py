# SPDX-License-Identifier: Apache-2.0
"""`DataVersion`: are tensors as they were?

What is computed from tensors that are not ours (data, what f closes over) holds for as long as
nobody writes to them; and what holds for a batch holds for one of the same content, which a loader
makes anew in every sweep.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    contents: tuple[int, ...]

    @staticmethod
    def of(tensors: Sequence[Tensor]) -> DataVersion:
        """What there is to be remembered of them; reads them once."""
        references = tuple(weakref.ref(tensor) for tensor in tensors)
        return DataVersion(references, versions(tensors), _contents(tensors))

    def matches(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same tensors, not written to since, or others of their content."""
        return self.match(tensors) is self

    def match(self, tensors: Sequence[Tensor]) -> DataVersion:
        """The version of these: this one if it knows them, and a new one otherwise."""
        if len(tensors) == len(self.references):
            same = all(ref() is t for ref, t in zip(self.references, tensors, strict=True))
            if same and versions(tensors) == self.versions:
                return self
        new = DataVersion.of(tensors)
        return self if new.contents == self.contents else new


def _contents(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    return tuple(map(_checksum, tensors))


def _checksum(tensor: Tensor) -> int:
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    plain = plain.cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(plain.numpy().data)
