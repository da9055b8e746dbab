# SPDX-License-Identifier: Apache-2.0
"""What a caller asks of products: `mode=`, `precision=` and, by `memory_budget=`, thrift."""

from __future__ import annotations

from dataclasses import dataclass

from hesse.tracing.precision import Precision


@dataclass(frozen=True)
class Request:
    """How products are to be taken.

    `keep` is how many bytes of residuals to hold on to between products: while programs are
    recorded and checked, and later. None, without a budget, is all of a single term and none of
    several.
    """

    mode: str = "auto"
    precision: Precision = "highest"
    keep: tuple[float, float] | None = None

    @property
    def is_thrifty(self) -> bool:
        """Whether memory counts for more than time."""
        return self.keep is not None
