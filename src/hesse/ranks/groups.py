# SPDX-License-Identifier: Apache-2.0
"""The process groups of torch.distributed that Hesse sends its messages in."""

from __future__ import annotations

import atexit
import datetime
from typing import Any

from hesse.errors import ArgumentError, kind_of

Key = tuple[Any, datetime.timedelta]
"""A group of the user's, and how long to wait in it."""

# The groups by those that they were made for. torch 2.13 may abort if one lives on at the very end.
_groups: dict[Key, Any] = {}
atexit.register(_groups.clear)


def make(key: Key) -> None:
    """The group of a key, if there is none yet; its processes call this together."""
    if key not in _groups:
        _groups[key] = _own_group(*key)


def of(key: Key) -> Any:
    """The group of a key."""
    return _groups[key]


def process_group(group: Any) -> Any:
    """The process group of a group or a mesh."""
    import torch.distributed as dist

    is_mesh = hasattr(group, "mesh_dim_names") or hasattr(group, "get_group")
    outside = dist.GroupMember.NON_GROUP_MEMBER
    if group.get_coordinate() is None if is_mesh else group is outside:
        raise ArgumentError(
            expected="a group of processes of which this one is one",
            got=f"a {'mesh' if is_mesh else 'group'} without process {dist.get_rank()}",
            remedy="Make the risk in the processes of the group alone.",
        )
    if is_mesh:
        if group.ndim == 1:
            return group.get_group()
        if group.size() == dist.get_world_size():
            return dist.group.WORLD
        raise ArgumentError(
            expected="a process group, or a DeviceMesh of one dimension or of all processes",
            got=f"a mesh of {group.ndim} dimensions, of {group.size()} processes",
            remedy="Give the dimension over which the data are split, mesh['dp'].",
        )
    if not isinstance(group, dist.ProcessGroup):
        raise ArgumentError(
            expected="group to be a process group of torch.distributed, or a DeviceMesh",
            got=kind_of(group),
            remedy="Give torch.distributed.group.WORLD for all processes.",
        )
    return group


def _own_group(group: Any, timeout: datetime.timedelta) -> Any:
    """A group of the same members, for Hesse alone; the group itself if it has not all processes.

    The others do not know that it is to be made, and without them torch 2.13 finds a name for it
    from the number of groups that each member is in, which may differ.
    """
    import torch.distributed as dist

    is_whole = dist.get_world_size(group) == dist.get_world_size()
    return dist.new_group(timeout=timeout) if is_whole else group
