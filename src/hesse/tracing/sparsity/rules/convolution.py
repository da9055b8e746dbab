# SPDX-License-Identifier: Apache-2.0
"""Convolutions of the direction with a kernel that does not depend on it, and their adjoints.

A kernel that is 1 at one place and 0 elsewhere moves entries. The pattern is the union over the
places of the kernel; places at which a known kernel is zero are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from hesse.tracing.graph import Node, Value
from hesse.tracing.sparsity.patterns import Pattern, empty, select, union
from hesse.tracing.sparsity.tape import Tape, row_numbers

_aten = torch.ops.aten


def patterns(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    """Those of the result, or of the gradient with respect to the images."""
    if node.function is _aten.convolution.default:
        return _convolution(node, tape)
    if node.function is _aten.convolution_backward.default:
        return _backward(node, tape)
    return None


def _convolution(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    x, weight, bias, *geometry = node.args
    transposed, groups = geometry[3], geometry[5]
    if tape.moves(weight) or tape.moves(bias) or not tape.moves(x):
        return None
    numbers = tape.numbers(x.index).to(torch.float64)
    parts = [
        select(
            [tape.patterns[x.index]], row_numbers(node.function(numbers, kernel, None, *geometry))
        )
        for kernel in _kernels(_nonzeros(weight, tape), 0 if transposed else 1, groups)
    ]
    (result,) = node.results
    return [union(parts) if parts else _nothing(tape, x.index, result)]


def _backward(node: Node, tape: Tape) -> Sequence[Pattern | None] | None:
    g, x, weight, _, *geometry, _ = node.args
    transposed, groups = geometry[3], geometry[5]
    if not tape.moves(g) or tape.moves(x) or tape.moves(weight) or any(node.results[1:]):
        return None
    numbers = tape.numbers(g.index).to(torch.float64)
    images = torch.zeros(tape.shape(x.index), dtype=torch.float64)
    parts = []
    for kernel in _kernels(_nonzeros(weight, tape), 1 if transposed else 0, groups):
        moved = node.function(numbers, images, kernel, None, *geometry, [True, False, False])[0]
        parts.append(select([tape.patterns[g.index]], row_numbers(moved.round())))
    (result, *_) = node.results
    return [union(parts) if parts else _nothing(tape, g.index, result), None, None]


def _nonzeros(weight: Value, tape: Tape) -> Tensor:
    """1 where a kernel may differ from zero."""
    if tape.is_known(weight):
        return (tape.operand(weight.index) != 0).to(torch.float64)
    return torch.ones(tape.shape(weight.index), dtype=torch.float64)


def _kernels(nonzeros: Tensor, summed: int, groups: int) -> Iterator[Tensor]:
    """Kernels with which every entry of the result is one entry of the argument, or zero.

    They keep one place, and one channel of those that are summed over, which lie along the
    dimension `summed`: of dimension 0 it is one in each group.
    """
    channels = nonzeros.shape[summed] // (groups if summed == 0 else 1)
    for channel, place in product(range(channels), product(*map(range, nonzeros.shape[2:]))):
        rows = slice(channel, None, channels) if summed == 0 else slice(None)
        columns = slice(None) if summed == 0 else channel
        kernel = torch.zeros_like(nonzeros)
        kernel[(rows, columns, *place)] = nonzeros[(rows, columns, *place)]
        if kernel.any():
            yield kernel


def _nothing(tape: Tape, source: int, result: int | None) -> Pattern:
    assert result is not None
    return empty(tape.numel(result), tape.patterns[source].shape[1])
