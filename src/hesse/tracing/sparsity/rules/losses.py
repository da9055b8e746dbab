# SPDX-License-Identifier: Apache-2.0
"""The negative log-likelihood of classes, which reads one entry of each row, and its adjoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hesse.tracing.graph import Node
from hesse.tracing.sparsity.patterns import Pattern, gather_groups, select
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten

_READS = {_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default}
_WRITES = {_aten.nll_loss_backward.default, _aten.nll_loss2d_backward.default}


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """Those of the loss, one for each row or their sum, or of the gradient in the rows."""
    (first, *others), moving = node.args, tape.moving(node)
    if node.function not in _READS | _WRITES or moving != [first.index]:
        return None
    scores, target = (first, others[0]) if node.function in _READS else others[:2]
    if not tape.is_known(target):
        return None
    places = _places(tape, scores.index, target.index, node)
    pattern = tape.patterns[first.index]
    (result, *rest), width = node.results, tape.numel(scores.index)
    assert result is not None
    if node.function in _READS:
        read = select([pattern], places + 1)  # 0 where the class is ignored
        if tape.numel(result) != len(places):
            read = gather_groups(read, np.zeros(len(places), dtype=np.int64), 1)
        return [read, *(None for _ in rest)]
    used = places >= 0
    given = tape.broadcast(first.index, tape.shape(target.index))
    return [gather_groups(given, places[used], width, members=np.flatnonzero(used))]


def _places(tape: Tape, scores: int, target: int, node: Node) -> np.ndarray:
    """The entry of the scores that each target reads; -1 where it is ignored."""
    ignored = node.args[4 if node.function in _READS else 5]
    classes, shape = tape.operand(target), tape.shape(scores)
    numbers = torch.arange(tape.numel(scores)).view(shape)
    dim = 1 if len(shape) > 1 else 0
    counts = classes != ignored
    index = torch.where(counts, classes, 0).unsqueeze(dim)
    return row_numbers(torch.where(counts, numbers.gather(dim, index).squeeze(dim), -1))
