# SPDX-License-Identifier: Apache-2.0
"""`shard`: a tree of tensors, cut over the processes of a mesh."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, ShapeError, kind_of
from hesse.vectors.trees import Tree, map_leaves, subscript, walk


@public("hesse.distributed.shard(tree, mesh)")
def shard(tree: Tree, mesh: Any) -> Tree:
    """The tensors of a tree as `DTensor`s: of each, every process keeps a part of the rows.

    At such parameters the operators of a `hesse.Risk` with `group=mesh` have sharded vectors: bases
    of Krylov methods, results and states take 1/p of the memory on p processes.

    Args:
        tree: whole tensors, on every process; those of the first one count.
        mesh: a `DeviceMesh`, as `torch.distributed.device_mesh.init_device_mesh` makes it. Along
            the last of several dimensions tensors are cut, along the others replicated.

    Returns:
        A tree of `torch.distributed.tensor.DTensor`s, each cut along its first dimension as
        `torch.chunk` does. Parts may differ in size, and be empty.

    Cost: one message from the first process to each other one for each tensor.

    Raises:
        HesseError: what is given is no mesh; a tensor without a dimension.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if not isinstance(mesh, DeviceMesh):
        raise ArgumentError(
            expected="a DeviceMesh",
            got=kind_of(mesh),
            remedy="Give init_device_mesh('cuda', (size,)), or a dimension of a mesh: mesh['dp'].",
        )
    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    for name, leaf in walk(tree, "tree"):
        if leaf.ndim == 0:
            raise ShapeError(
                expected=f"tree{subscript(name)} with a dimension to be cut along",
                got="shape ()",
                remedy="Make it a vector of one entry: tensor.reshape(1).",
            )

    def cut(leaf: Tensor) -> Tensor:
        return distribute_tensor(leaf.detach(), mesh, placements)

    return map_leaves(cut, tree)
