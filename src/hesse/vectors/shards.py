# SPDX-License-Identifier: Apache-2.0
"""`Shards`: how vectors are cut over the processes of a mesh, as their leaves are.

On a mesh of several dimensions the leaves are cut along one of them, and replicated along the
others (HSDP): what is said of processes here is then of those along that dimension.

A leaf is a `DTensor` that is cut along one of its dimensions as `torch.chunk` cuts it: parts of
ceil(size / p) rows, fewer on the last ranks, maybe none. The flat vector of a rank is made of its
parts of the leaves, one after the other.

What is sent from rank to rank has a *cell* for each leaf, of the size of the largest part, so that
the parts of all ranks are one table of equal rows. Where all parts are equal there is nothing in a
cell but the part.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hesse.errors import ShapeError, StructureError

_HOW = (
    "Give parameters as torch.distributed.fsdp.fully_shard makes them, or "
    "hesse.distributed.shard(tree, mesh) of whole tensors."
)


@dataclass(frozen=True)
class Cut:
    """One leaf: its shape, and the dimension along which `size` processes share it.

    >>> cut = Cut(torch.Size([5, 2]), 0, 3)
    >>> cut.cell, [tuple(cut.part(rank)) for rank in range(3)]
    (torch.Size([2, 2]), [(2, 2), (2, 2), (1, 2)])
    """

    shape: torch.Size
    dim: int
    size: int

    @property
    def rows(self) -> int:
        """Rows of the largest part."""
        return -(-self.shape[self.dim] // self.size)

    @property
    def cell(self) -> torch.Size:
        """The shape of the largest part."""
        return self._with(self.rows)

    @property
    def is_even(self) -> bool:
        """Whether all parts are equal."""
        return self.rows * self.size == self.shape[self.dim]

    def first(self, rank: int) -> int:
        """The first row of the part of a rank."""
        return min(rank * self.rows, self.shape[self.dim])

    def part(self, rank: int) -> torch.Size:
        """The shape of the part of a rank."""
        return self._with(self.first(rank + 1) - self.first(rank))

    def _with(self, rows: int) -> torch.Size:
        return torch.Size([*self.shape[: self.dim], rows, *self.shape[self.dim + 1 :]])


@dataclass(frozen=True)
class Shards:
    """The leaves of a space, cut over a mesh.

    Args:
        mesh: the `DeviceMesh`.
        rank: of this process in it.
        cuts: of the leaves.
        axis: the dimension of the mesh along which they are cut.
    """

    mesh: Any
    rank: int
    cuts: tuple[Cut, ...]
    axis: int = 0

    @staticmethod
    def of(leaves: Sequence[tuple[str, Any]]) -> Shards:
        """As these `DTensor`s are cut, which have labels for messages.

        Raises:
            StructureError: they are no parts of tensors that one mesh shares along a dimension.
        """
        mesh, axis, cuts = None, None, list[Cut]()
        for label, leaf in leaves:
            if not is_sharded(leaf):
                raise StructureError(
                    expected=f"all of the tensors sharded, as {leaves[0][0]} is, or none",
                    got=f"{label}, which is a plain tensor",
                    remedy=_HOW,
                )
            if mesh is None or axis is None:
                mesh, axis = leaf.device_mesh, _axis(label, leaf)
            cuts.append(_cut(label, leaf, mesh, axis))
        assert mesh is not None
        assert axis is not None
        return Shards(mesh, mesh.get_local_rank(axis), tuple(cuts), axis)

    def some(self, chosen: Sequence[int]) -> Shards:
        """Those of some of the leaves."""
        return Shards(self.mesh, self.rank, tuple(self.cuts[i] for i in chosen), self.axis)

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return self.mesh.size(self.axis)

    @property
    def is_replicated(self) -> bool:
        """Whether other processes have the same parts."""
        return self.mesh.ndim > 1

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The shapes of the whole leaves."""
        return tuple(cut.shape for cut in self.cuts)

    @cached_property
    def n(self) -> int:
        """The number of entries of the whole leaves."""
        return sum(map(math.prod, self.shapes))

    @cached_property
    def width(self) -> int:
        """The number of entries of the largest part."""
        return sum(math.prod(cut.cell) for cut in self.cuts)

    # -- DTensors ----------------------------------------------------------------------------------

    def parts(self, leaves: Sequence[tuple[str, Any]]) -> list[Tensor]:
        """The parts of this rank; raises unless the `DTensor`s are cut as these leaves are."""
        found = []
        for (label, leaf), cut in zip(leaves, self.cuts, strict=True):
            if not is_sharded(leaf) or leaf.device_mesh != self.mesh:
                raise StructureError(
                    expected=f"{label} to be sharded over the mesh of x",
                    got="a DTensor on another" if is_sharded(leaf) else "a plain tensor",
                    remedy=_HOW,
                )
            if leaf.shape != cut.shape:
                raise ShapeError(
                    expected=f"{label} of shape {tuple(cut.shape)}",
                    got=f"shape {tuple(leaf.shape)}",
                    remedy="Give one tensor for each tensor of x, of the same shape.",
                )
            if _cut(label, leaf, self.mesh, self.axis) != cut:
                raise StructureError(
                    expected=f"{label} cut along dimension {cut.dim}, like x",
                    got=str(leaf.placements),
                    remedy="Call its redistribute(placements=...) first.",
                )
            found.append(leaf.to_local())
        return found

    def whole(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The `DTensor`s of the parts of this rank, in memory of their own.

        Those of a view cannot be pickled or copied deeply (torch 2.13).
        """
        from torch.distributed.tensor import DTensor, Replicate, Shard

        def placed(cut: Cut) -> list[Any]:
            dims = range(self.mesh.ndim)
            return [Shard(cut.dim) if dim == self.axis else Replicate() for dim in dims]

        return [
            DTensor.from_local(
                *(_own(part), self.mesh, placed(cut)),
                run_check=False,
                shape=cut.shape,
                stride=torch.empty(cut.shape, device="meta").stride(),
            )
            for part, cut in zip(parts, self.cuts, strict=True)
        ]

    # -- Rows of all ranks, and whole vectors ------------------------------------------------------

    def pack(self, rows: Tensor) -> Tensor:
        """The parts (k, size) of k vectors as a row of a table: (k * width,)."""
        if all(cut.is_even for cut in self.cuts):
            return rows.reshape(-1)
        packed, at = rows.new_zeros(len(rows), self.width), 0
        for cut, cell in self._cells(packed):
            part = cut.part(self.rank)
            here = rows[:, at : at + math.prod(part)].reshape(len(rows), *part)
            cell.narrow(cut.dim + 1, 0, part[cut.dim]).copy_(here)
            at += math.prod(part)
        return packed.view(-1)

    def unpack(self, row: Tensor, k: int) -> Tensor:
        """The parts (k, size) that a row of a table has: what `pack` makes, undone."""
        packed = row.view(k, self.width)
        if all(cut.is_even for cut in self.cuts):
            return packed
        parts = [
            cell.narrow(cut.dim + 1, 0, cut.part(self.rank)[cut.dim]).reshape(
                k, math.prod(cut.part(self.rank))
            )
            for cut, cell in self._cells(packed)
        ]
        return torch.cat(parts, dim=1)

    def assemble(self, table: Tensor, k: int) -> Tensor:
        """The whole vectors (k, n), from the rows (p, k * width) of all ranks."""
        whole = table.new_empty(k, self.n)
        cells = self._cells(table.unflatten(1, (k, self.width)))
        for (cut, cell), leaf in zip(cells, self._leaves(whole), strict=True):
            joined = cell.movedim(0, cut.dim + 1).flatten(cut.dim + 1, cut.dim + 2)
            leaf.copy_(joined.narrow(cut.dim + 1, 0, cut.shape[cut.dim]))
        return whole

    def distribute(self, whole: Tensor, table: Tensor) -> None:
        """Write whole vectors (k, n) into the rows (p, k * width) of all ranks."""
        cells = self._cells(table.unflatten(1, (len(whole), self.width)))
        for (cut, cell), leaf in zip(cells, self._leaves(whole), strict=True):
            dim = cut.dim + 1
            if not cut.is_even:
                sizes = list(leaf.shape)
                sizes[dim] = self.ranks * cut.rows
                padded = leaf.new_zeros(sizes)
                padded.narrow(dim, 0, leaf.shape[dim]).copy_(leaf)
                leaf = padded
            cell.copy_(leaf.unflatten(dim, (self.ranks, cut.rows)).movedim(dim, 0))

    def _cells(self, packed: Tensor) -> Iterator[tuple[Cut, Tensor]]:
        """Each leaf with its cells in the last dimension of a tensor, in the shape of a part."""
        sizes = [math.prod(cut.cell) for cut in self.cuts]
        for cut, cell in zip(self.cuts, packed.split(sizes, dim=-1), strict=True):
            yield cut, cell.view(*cell.shape[:-1], *cut.cell)

    def _leaves(self, whole: Tensor) -> list[Tensor]:
        """The leaves of whole vectors (k, n), shape (k, ...) each."""
        parts = whole.split([math.prod(shape) for shape in self.shapes], dim=1)
        pairs = zip(parts, self.shapes, strict=True)
        return [part.view(len(whole), *shape) for part, shape in pairs]

    # -- Where the entries of this rank lie in whole vectors ---------------------------------------

    def take(self, entries: Any) -> Tensor:
        """The entries of this rank, where entries(start, stop) gives those of a whole vector."""
        parts, start = [], 0
        for cut in self.cuts:
            size, inner = math.prod(cut.shape), math.prod(cut.shape[cut.dim + 1 :])
            first, rows = cut.first(self.rank), cut.part(self.rank)[cut.dim]
            outer = math.prod(cut.shape[: cut.dim])
            if outer == 1:  # neighbours
                begin = start + first * inner
                parts.append(entries(begin, begin + rows * inner))
            else:
                leaf = entries(start, start + size).view(outer, cut.shape[cut.dim], inner)
                parts.append(leaf.narrow(1, first, rows).reshape(-1))
            start += size
        return torch.cat(parts)


def _own(part: Tensor) -> Tensor:
    """A contiguous tensor that is all of its memory."""
    is_view = part.untyped_storage().nbytes() > part.nbytes
    return part.clone() if is_view else part.contiguous()


def is_sharded(leaf: Any) -> TypeGuard[Any]:
    """Whether a tensor is a `DTensor`; without importing what makes such tensors."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(leaf, module.DTensor)


def part_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process has, in the memory of the tensor."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor.detach()


def _axis(label: str, leaf: Any) -> int:
    """The dimension of its mesh along which a `DTensor` is cut; the others replicate it."""
    from torch.distributed.tensor import Replicate, Shard

    kinds = list(map(type, leaf.placements))
    if kinds.count(Shard) != 1 or kinds.count(Replicate) != len(kinds) - 1:
        raise StructureError(
            expected=f"{label} cut along one dimension of its mesh, and replicated along others",
            got=str(leaf.placements),
            remedy=_HOW,
        )
    return kinds.index(Shard)


def _cut(label: str, leaf: Any, mesh: Any, axis: int) -> Cut:
    """How a `DTensor` is cut; raises unless over this mesh as `Shards` says."""
    if leaf.device_mesh != mesh or _axis(label, leaf) != axis:
        raise StructureError(
            expected=f"{label} on the mesh of the other tensors, cut along its same dimension",
            got=f"{leaf.placements} on {leaf.device_mesh}",
            remedy="Shard all of them over one mesh.",
        )
    cut = Cut(leaf.shape, leaf.placements[axis].dim % leaf.ndim, mesh.size(axis))
    local = leaf.detach().to_local()
    if local.shape != cut.part(mesh.get_local_rank(axis)):
        raise StructureError(
            expected=f"{label} cut as torch.chunk does, into parts of {cut.rows} rows",
            got=f"a part of shape {tuple(local.shape)}",
            remedy=_HOW,
        )
    if local.device.type != mesh.device_type:
        raise StructureError(
            expected=f"{label} on the devices of its mesh, {mesh.device_type}",
            got=f"a part on {local.device}",
            remedy="Leave out offload_policy= of fully_shard.",
        )
    return cut
