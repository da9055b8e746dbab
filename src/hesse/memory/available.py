# SPDX-License-Identifier: Apache-2.0
"""How much memory a device has left, for this process, without swapping."""

from __future__ import annotations

import math
from pathlib import Path

import torch

_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
# (limit, in use) of control groups, versions 2 and 1.
_GROUP_FILES = [
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
]


def available_bytes(device: torch.device) -> float:
    """The bytes that can be had on a device; 0 where that cannot be found out.

    >>> available_bytes(torch.device("cpu")) >= 0.0
    True
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + cached)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(_system_bytes(), *map(_group_bytes, *zip(*_GROUP_FILES, strict=True)))


def _system_bytes() -> float:
    """What the system can give without swapping."""
    try:
        with _SYSTEM.open(encoding="ascii") as lines:
            line = next((line for line in lines if line.startswith("MemAvailable:")), ": 0")
    except OSError:
        return 0.0
    return 1024.0 * float(line.split()[1])


def _group_bytes(limit: str, in_use: str) -> float:
    """What is left of the limit of a control group, as a container has one."""
    try:
        largest = (_GROUP / limit).read_text(encoding="ascii").strip()
        used = (_GROUP / in_use).read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return math.inf if largest == "max" else max(0.0, float(largest) - float(used))
