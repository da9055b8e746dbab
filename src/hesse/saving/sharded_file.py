# SPDX-License-Identifier: Apache-2.0
"""Sharded vectors in files: one of each process, and a manifest that names them.

The manifest is an ordinary file of a state, without the vectors: its header says instead how they
were cut, and the checksums of the *parts*, the files of the processes. The first process writes it
when all parts are on the disk. The parts of each save have its number in their names, so that those
of the save before stay as long as a manifest names them: whatever happens, there is a whole save.

A tensor is taken for vectors if its last or its first dimension is the local size in all processes.
In a tiny space that may be true of another one, which then is in every part; read by other
processes it is known by being the same in all.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hesse.saving.tensor_file import DamagedFile, Header, check_place, read, remove, write
from hesse.vectors.cuts import Cut
from hesse.vectors.shards import Shards
from hesse.vectors.space import Space

Tensors = dict[str, Tensor]

_MISFITS = LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError


@dataclass(frozen=True)
class Parts:
    """What a manifest says of the parts.

    Args:
        save: the number of the save.
        cuts: how each leaf was cut.
        checksums: of the parts, in the order of the ranks.
        dims: along which dimension each tensor is cut, by name: the last, -1, or the first, 0.
    """

    save: int
    cuts: tuple[Cut, ...]
    checksums: tuple[int, ...]
    dims: dict[str, int]

    def to_json(self) -> Header:
        """As JSON."""
        cuts = [[list(cut.shape), cut.dim] for cut in self.cuts]
        return {
            "save": self.save,
            "cuts": cuts,
            "checksums": list(self.checksums),
            "dims": self.dims,
        }

    @staticmethod
    def of_json(found: Any, n: int) -> Parts:
        """From JSON; raises DamagedFile unless it is that of a space of dimension n."""
        try:
            checksums = tuple(map(int, found["checksums"]))
            cuts = tuple(
                Cut(torch.Size(shape), range(len(shape))[dim], len(checksums))
                for shape, dim in found["cuts"]
            )
            dims = {name: (-1, 0)[(-1, 0).index(dim)] for name, dim in found["dims"].items()}
            parts = Parts(int(found["save"]), cuts, checksums, dims)
            sizes = [size for cut in cuts for size in cut.shape]
            is_whole = min(sizes) >= 0 and sum(math.prod(cut.shape) for cut in cuts) == n
        except _MISFITS as error:
            raise DamagedFile(f"a header that names no parts: {error}") from error
        if not (is_whole and checksums):
            raise DamagedFile(f"a header whose parts are not those of {n:,} entries")
        return parts

    def path(self, manifest: Path, rank: int) -> Path:
        """Of the part of a rank."""
        name = f"{manifest.name}.save-{self.save}.rank-{rank}-of-{len(self.checksums)}"
        return manifest.with_name(name)

    def read(self, manifest: Path, rank: int) -> Tensors:
        """The tensors of a part."""

        def check(header: Header) -> None:
            if header.get("checksum") != self.checksums[rank]:
                raise DamagedFile(f"a part of another save: {path.name}")

        path = self.path(manifest, rank)
        tensors = read(path, check)[1]
        if tensors.keys() != self.dims.keys():
            raise DamagedFile(f"a part with other tensors: {path.name}")
        return tensors


class ShardedFile:
    """Writes states whose vectors are sharded; all processes call each method together.

    Of processes that have the same parts the first one writes.
    """

    def __init__(self, space: Space) -> None:
        assert space.ranks is not None
        assert isinstance(space.shards, Shards)
        self._ranks, self._shards, self._sharers = space.ranks, space.shards, space.sharers
        self._writes = all(holders.rank == 0 for holders in space.holders)
        self._saves = 0

    def check_place(self, manifest: Path) -> None:
        """Raise OSError unless the part of this process can be written."""
        check_place(self._unwritten({}).path(manifest, self._shards.rank))

    def is_due(self, here: bool) -> bool:
        """Whether the first process finds that a save is due."""
        return bool(self._ranks.gather(here)[0][0])

    def write(self, manifest: Path, make: Callable[[], tuple[Header, Tensors]]) -> None:
        """Write the header and the tensors that make() gives.

        Raises:
            OSError, MemoryError, RankError: that failed in a process; the save before is whole.
        """
        rank = self._shards.rank
        with self._ranks.alike():
            header, tensors = make()
        self._saves += 1
        parts = self._unwritten(self._agreed_dims(tensors))
        path = parts.path(manifest, rank)
        try:
            with self._ranks.alike():
                vectors = {name: tensors.pop(name) for name in parts.dims}
                checksum = write(path, {}, vectors) if self._writes else 0
        except Exception:
            if self._writes:
                remove(path)
            raise
        checksums = tuple(int(row[0]) for row in self._sharers.gather(checksum))
        parts = Parts(parts.save, parts.cuts, checksums, parts.dims)
        if rank == 0 and self._writes:
            write(manifest, {**header, "parts": parts.to_json()}, tensors)
            _remove_others(manifest, parts)

    def continue_from(self, header: Header) -> None:
        """Number the next saves after that of a manifest."""
        self._saves = header["parts"]["save"]

    def _unwritten(self, dims: dict[str, int]) -> Parts:
        return Parts(self._saves, self._shards.cuts, (0,) * self._shards.ranks, dims)

    def _agreed_dims(self, tensors: Tensors) -> dict[str, int]:
        """The tensors that are cut in all processes, and along which dimension."""
        rank, cuts = self._shards.rank, self._shards.cuts
        size = sum(math.prod(cut.part(rank)) for cut in cuts)
        possible = [_dims_of_size(tensor, size) for tensor in tensors.values()]
        codes = self._sharers.gather(*(sum(2 ** (1 + dim) for dim in dims) for dims in possible))
        agreed = {}
        for name, column in zip(tensors, zip(*codes, strict=True), strict=True):
            code = reduce(int.__and__, map(int, column))
            if code:
                agreed[name] = -1 if code & 1 else 0
        return agreed


def read_state(
    manifest: Path, check: Callable[[Header], None], space: Space
) -> tuple[Header, Tensors]:
    """The header and the tensors of a state, its vectors as this space has them.

    Of the same cuts they are read as they were written; else each process reads all parts, one
    after the other, and takes what is its own.

    Raises:
        DamagedFile: the manifest or a part is not what was written.
    """
    header, tensors = read(manifest, check)
    if space.shards is None:
        return header, tensors
    parts = Parts.of_json(header["parts"], space.n)
    if space.shards.cuts == parts.cuts:
        return header, tensors | parts.read(manifest, space.shards.rank)
    return header, tensors | _redistributed(manifest, parts, space)


def _redistributed(manifest: Path, parts: Parts, space: Space) -> Tensors:
    """The tensors of all parts, cut as this space is."""
    here = space.positions.cpu()
    found, first, repeated = Tensors(), Tensors(), dict.fromkeys(parts.dims, True)
    for rank in range(len(parts.checksums)):
        there = Shards(None, rank, parts.cuts).take(torch.arange)
        tensors = parts.read(manifest, rank)
        first = first or tensors
        for name, dim in parts.dims.items():
            rows = tensors[name].movedim(dim, -1)
            if rows.shape[-1] != len(there):
                raise DamagedFile(f"a part whose vectors have {rows.shape[-1]:,} entries")
            repeated[name] &= torch.equal(tensors[name], first[name])
            found.setdefault(name, rows.new_zeros(*rows.shape[:-1], len(here)))
            _place(found[name], here, rows, there)
    is_one = len(parts.checksums) == 1
    return {
        name: first[name]
        if repeated[name] and not is_one and bool(first[name].any())
        else found[name].movedim(-1, dim).contiguous()
        for name, dim in parts.dims.items()
    }


def _place(target: Tensor, here: Tensor, source: Tensor, there: Tensor) -> None:
    """Copy the entries that two processes share; `here`, `there`: where theirs lie, ascending."""
    if len(here) == 0:
        return
    at = torch.searchsorted(here, there).clamp(max=len(here) - 1)
    shared = here[at] == there
    target[..., at[shared]] = source[..., shared]


def _dims_of_size(tensor: Tensor, size: int) -> Iterator[int]:
    """The dimensions along which a tensor may have the entries of vectors: -1, the last; 0."""
    if tensor.is_floating_point() and tensor.ndim > 0:
        if tensor.shape[-1] == size:
            yield -1
        if tensor.shape[0] == size and tensor.ndim == 2:
            yield 0


def _remove_others(manifest: Path, parts: Parts) -> None:
    """Remove the parts that a manifest does not name: of earlier saves, and of interrupted ones."""
    named = {parts.path(manifest, rank) for rank in range(len(parts.checksums))}
    for path in manifest.parent.glob(glob.escape(manifest.name) + ".save-*.rank-*"):
        if path not in named:
            remove(path)
