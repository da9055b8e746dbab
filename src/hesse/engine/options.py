# SPDX-License-Identifier: Apache-2.0
"""`ProductOptions`: what a caller asks of products, the same for every summand and every point."""

from __future__ import annotations

from dataclasses import dataclass, field

from hesse.engine.cost_model import CostModel, current_cost_model
from hesse.tracing.precision import Precision


@dataclass(frozen=True)
class ProductOptions:
    """How products are to be taken.

    Args:
        mode: "auto", or one mode.
        precision: see `hesse.tracing.precision`.
        kept_bytes: of residuals that are held between products, while programs are traced and
            validated, and later; None: all of a single summand, and a share of the free memory for
            several.
        low_memory: whether memory counts for more than time.
        cost_model: decides when tracing and compiling pay.
    """

    mode: str = "auto"
    precision: Precision = "highest"
    kept_bytes: tuple[float, float] | None = None
    low_memory: bool = False
    cost_model: CostModel = field(default_factory=current_cost_model)
