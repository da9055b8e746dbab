# SPDX-License-Identifier: Apache-2.0
"""Observe the operations of torch below autograd; tracers and memory meters are subclasses.

The only file that uses torch's dispatch modes, which are semi-private; tried on torch 2.13 and
2.15.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

# Autograd makes zeros without memory for the derivative of `sgn`, say. In a dispatch mode
# `mul` by a number reads them all the same, and ends the process (torch 2.13).
_IN_MEMORY = {torch.ops.aten._efficientzerotensor.default: torch.ops.aten.zeros.default}

_stack = getattr(_python_dispatch, "_get_current_dispatch_mode_stack", list)


def is_recorded() -> bool:
    """Whether operations are observed by Hesse; somebody's counter of FLOPs does not matter."""
    return any(isinstance(mode, Watch) for mode in _stack())


class Watch(TorchDispatchMode):
    """A context in which every operation is reported to `observe` after it has run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Hesse runs no compiled code in this context. False also avoids the import of the compiler,
        # which takes a second.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        kwargs = kwargs or {}
        func = _IN_MEMORY.get(func, func)
        result = func(*args, **kwargs)
        self.observe(func, args, kwargs, result)
        return result

    def observe(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Called after result = function(*args, **kwargs)."""
        raise NotImplementedError
