# SPDX-License-Identifier: Apache-2.0
"""All scenarios; importing this package enters them into the list of faults."""

from __future__ import annotations

from tools.faults.scenarios import products

__all__ = ["products"]
