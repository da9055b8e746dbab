# SPDX-License-Identifier: Apache-2.0
"""`Composing`: a function in which more operations are composed than are wrong in torch.

A sparse Hessian is found in a trace, entry by entry. An operation of torch without a trace or a
rule is composed of others for it (`sparse_products`, `small_matrices`). Other operators leave these
operations to torch, whose own take less time and memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_composes: ContextVar[bool] = ContextVar("hesse_composes", default=False)

composes = _composes.get
"""Whether a function of this kind runs."""


@dataclass(frozen=True)
class Composing:
    """The same function, in which these operations are composed."""

    function: Callable[[Any], Any]

    def __call__(self, x: Any) -> Any:
        """f(x)."""
        token = _composes.set(True)
        try:
            return self.function(x)
        finally:
            _composes.reset(token)
