# SPDX-License-Identifier: Apache-2.0
"""`Shards`: how vectors are cut over the processes of a mesh, as their leaves are.

On a mesh of several dimensions the leaves are cut along one of them, and replicated along the
others (HSDP): what is said of processes here is then of those along that dimension.

A leaf is a `DTensor` that is cut along one of its dimensions as `torch.chunk` cuts it: parts of
ceil(size / p) rows, fewer on the last ranks, maybe none.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from hesse.errors import ShapeError, StructureError
from hesse.ranks import Ranks
from hesse.vectors.cuts import Cut
from hesse.vectors.division import Division

_HOW = (
    "Give parameters as torch.distributed.fsdp.fully_shard makes them, or "
    "hesse.distributed.shard(tree, mesh) of whole tensors."
)


@dataclass(frozen=True)
class Shards(Division):
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

    def is_leaf(self, v: Any, part: torch.Size) -> bool:
        """Whether v is a `DTensor`."""
        return is_sharded(v)

    def sharers(self, ranks: Ranks) -> Ranks:
        """The processes along the dimension of the mesh."""
        return ranks.along(self.mesh, self.axis)

    def holders(self, ranks: Ranks) -> list[Ranks]:
        """The processes along each other dimension."""
        axes = [axis for axis in range(self.mesh.ndim) if axis != self.axis]
        return [ranks.along(self.mesh, axis) for axis in axes]

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

    # -- Sums, which each rank has its parts of ----------------------------------------------------

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
