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


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """The union over the arguments, after broadcasting; `where` unites both branches."""
    if not is_pointwise(node.function):
        return None
    (result,) = node.results
    assert result is not None
    shape = tape.shape(result)
    whole = union([tape.broadcast(number, shape) for number in tape.moving(node)])
    mask = _factor_with_zeros(node, tape)
    if mask is None:
        return [whole]
    rows = np.arange(1, whole.shape[0] + 1)
    kept = np.broadcast_to(mask.numpy(), shape).reshape(-1)
    return [select([whole], np.where(kept, rows, 0))]


def _factor_with_zeros(node: Node, tape: Tape) -> torch.Tensor | None:
    """Where the factor of a product may differ from zero, if it has zeros."""
    if node.function is not _aten.mul.Tensor:
        return None
    fixed = (argument for argument in node.args if not tape.moves(argument))
    return next((mask for a in fixed if (mask := tape.nonzeros(a)) is not None), None)
