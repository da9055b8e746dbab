# SPDX-License-Identifier: Apache-2.0
"""Times of subjects that take turns in one process, and the operations that they count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.flop_counter import FlopCounterMode


def fastest(subjects: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The seconds of the processor that each takes, the least of all turns."""
    best = dict.fromkeys(subjects, float("inf"))
    for _ in range(repeats):
        for name, run in subjects.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    return best


def flops(run: Callable[[], Any], warm_up: int = 1) -> int:
    """The floating-point operations of a call, after some that are not counted."""
    for _ in range(warm_up):
        run()
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
