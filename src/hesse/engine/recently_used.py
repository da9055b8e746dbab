# SPDX-License-Identifier: Apache-2.0
"""A cache that lets go of what has not been used for longest."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any


class RecentlyUsed(OrderedDict):
    """A dict, read by `setdefault`, of at most `limit` entries; a deep copy or pickle is empty.

    >>> recent = RecentlyUsed(2)
    >>> [recent.setdefault(key, key) for key in "abac"], list(recent)
    (['a', 'b', 'a', 'c'], ['a', 'c'])
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self._lock = threading.Lock()

    def __reduce__(self):
        return type(self), (self.limit,)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        with self._lock:
            value = super().setdefault(key, default)
            self.move_to_end(key)
            while len(self) > self.limit:
                self.popitem(last=False)
        return value
