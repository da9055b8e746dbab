# SPDX-License-Identifier: Apache-2.0
"""All scenarios; importing this package enters them into the list of faults."""

from __future__ import annotations

from tools.faults.scenarios import products  # isort: skip
from tools.faults.scenarios import functions, minimisers, least_squares  # isort: skip
from tools.faults.scenarios import models, memory, applications  # isort: skip
from tools.faults.scenarios import processes, ranks, files, structures, interrupts  # isort: skip

__all__ = [
    "applications",
    "files",
    "functions",
    "interrupts",
    "least_squares",
    "memory",
    "minimisers",
    "models",
    "processes",
    "products",
    "ranks",
    "structures",
]
