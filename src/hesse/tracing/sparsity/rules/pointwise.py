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
    kept = np.broadcast_to(mask.numpy() != 0, shape).reshape(-1)
    return [select([whole], np.where(kept, rows, 0))]


def _factor_with_zeros(node: Node, tape: Tape) -> torch.Tensor | None:
    """The known tensor of a product that has zeros in it, if there is one."""
    if node.function is not _aten.mul.Tensor:
        return None
    for argument in node.args:
        if tape.is_known(argument):
            factor = tape.operand(argument.index)
            return factor if bool((factor == 0).any()) else None
    return None
