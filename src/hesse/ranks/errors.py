# SPDX-License-Identifier: Apache-2.0
"""`RankError`: what happened on another rank, or between ranks."""

from __future__ import annotations

from hesse.errors import HesseError


class RankError(HesseError, RuntimeError):
    """A computation that one rank could not do, or that ranks do differently; raised on all."""

    is_outside_domain = False
    """Whether f is not defined at this point, on the rank that failed."""
