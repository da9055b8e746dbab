# SPDX-License-Identifier: Apache-2.0
"""What a function is called where an operator of it is printed."""

from __future__ import annotations

from functools import partial
from typing import Any


def described(f: Any) -> str:
    """A function in a few words: by its name, or, if it is one of Hesse's, by its `repr`."""
    if type(f).__module__.startswith("hesse."):
        return repr(f)
    if isinstance(f, partial):
        return described(f.func)
    return getattr(f, "__name__", type(f).__name__).replace("<lambda>", "a lambda")
