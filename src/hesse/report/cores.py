# SPDX-License-Identifier: Apache-2.0
"""How many threads the demonstration takes on a machine that others use too."""

from __future__ import annotations

import os

import torch


def leave_busy_cores() -> None:
    """Take one thread where other processes keep half of the cores busy.

    On models as small as those of the demonstration a second thread gains little, and beside busy
    processes each operation waits for it: ten times the CPU time was measured.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load >= (os.cpu_count() or 1) / 2:
        torch.set_num_threads(1)
