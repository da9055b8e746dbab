# SPDX-License-Identifier: Apache-2.0
"""`slowness`: how fast this machine runs Python and small operations, measured once a process.

What tracing costs is time in Python and in the dispatch of operations, so prices that were measured
on one machine hold on another one after scaling.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

# Seconds of one operation on the machine where the prices of a cost model were measured.
_REFERENCE = 1.1e-6
_ROUNDS, _OPERATIONS = 10, 100


@cache
def slowness() -> float:
    """How many times longer a small operation takes here than on the reference machine.

    The shortest of several rounds counts: on a busy machine the others measure who else is there.

    Cost: some two milliseconds, once a process.
    """
    x = torch.ones(4)
    return min(_seconds_of_a_round(x) for _ in range(_ROUNDS)) / (_OPERATIONS * _REFERENCE)


def _seconds_of_a_round(x: Tensor) -> float:
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(_OPERATIONS):
            torch.add(x, x)
        return time.perf_counter() - start
