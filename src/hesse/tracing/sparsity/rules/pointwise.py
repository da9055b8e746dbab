# SPDX-License-Identifier: Apache-2.0
"""Operations in which an entry of the result depends on the same entry of each argument."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hesse.tracing.graph import Node
from hesse.tracing.operations import is_pointwise
from hesse.tracing.sparsity.patterns import Pattern, select, union
from hesse.tracing.sparsity.tape import Tape

_aten = torch.ops.aten

# They are not marked as pointwise. A loss that is reduced has one slope for all entries.
_UNMARKED = frozenset(
    getattr(_aten, f"{name}_backward").default
    for name in (
        *("elu", "hardswish", "softplus", "log_sigmoid", "mish", "hardtanh", "leaky_relu"),
        *("hardshrink", "softshrink", "hardsigmoid", "gelu", "silu", "threshold", "tanh"),
        *("huber_loss", "smooth_l1_loss", "mse_loss", "soft_margin_loss", "_prelu_kernel"),
        "rrelu_with_noise",
    )
    if hasattr(_aten, f"{name}_backward")
)


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The union over the arguments, after broadcasting; `where` unites both branches."""
    if not is_pointwise(node.function) and node.function not in _UNMARKED:
        return None
    results = [number for number in node.results if number is not None]
    shape = tape.shape(results[0])
    whole = union([tape.broadcast(number, shape) for number in tape.moving(node)])
    mask = _factor_with_zeros(node, tape)
    if mask is None:
        return [None if number is None else whole for number in node.results]
    rows = np.arange(1, whole.shape[0] + 1)
    kept = np.broadcast_to(mask.numpy(), shape).reshape(-1)
    return [select([whole], np.where(kept, rows, 0))]


def _factor_with_zeros(node: Node, tape: Tape) -> torch.Tensor | None:
    """Where the factor of a product may differ from zero, if it has zeros."""
    if node.function is not _aten.mul.Tensor:
        return None
    fixed = (argument for argument in node.args if not tape.moves(argument))
    return next((mask for a in fixed if (mask := tape.nonzeros(a)) is not None), None)
