# SPDX-License-Identifier: Apache-2.0
"""All scenarios; importing this package enters them into the list of faults."""

from __future__ import annotations

from tools.faults.scenarios import products  # isort: skip
from tools.faults.scenarios import functions, models, memory  # isort: skip
from tools.faults.scenarios import processes, files, interrupts  # isort: skip

__all__ = ["files", "functions", "interrupts", "memory", "models", "processes", "products"]
