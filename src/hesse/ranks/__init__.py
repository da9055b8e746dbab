# SPDX-License-Identifier: Apache-2.0
"""Processes that share the data of a risk and take every step together."""

from hesse.ranks.errors import RankError, is_outside_domain, is_said_elsewhere, is_unsuitable
from hesse.ranks.ranks import Ranks, alike
from hesse.ranks.shared_run import check_same_checkpoint, share_run_of

__all__ = [
    "RankError",
    "Ranks",
    "alike",
    "check_same_checkpoint",
    "is_outside_domain",
    "is_said_elsewhere",
    "is_unsuitable",
    "share_run_of",
]
