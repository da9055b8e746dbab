# SPDX-License-Identifier: Apache-2.0
"""Processes that share the data of a risk and take every step together."""

from hesse.ranks.errors import RankError, is_outside_domain, is_said_elsewhere, is_unsuitable
from hesse.ranks.ranks import Ranks, alike

__all__ = ["RankError", "Ranks", "alike", "is_outside_domain", "is_said_elsewhere", "is_unsuitable"]
