# SPDX-License-Identifier: Apache-2.0
"""The gradient of a convolution's weight, written so that it is computed fast.

torch's second derivative of a convolution has this gradient as a convolution of transposed images,
whose kernel is as large as they are: a form that libraries are not made for. The backward pass of a
convolution computes the same numbers two to three times as fast. Where the images are much smaller
than there are channels, one product of matrices does, several times faster than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Op, Ref, Trace
from hesse.tracing.memory.liveness import made_by
from hesse.tracing.program import live

_aten = torch.ops.aten

# With so many times more channels than places in all images, patches are multiplied as a matrix.
_MORE_CHANNELS = 4


def rewrite_weight_gradients(trace: Trace) -> Trace | None:
    """The same computation with these gradients in a faster form; None if there are none.

    The operations put in are Python functions, and strides may differ: record it again.
    """
    return _Rewriter(trace).run()


@dataclass(frozen=True)
class _Geometry:
    """How a kernel is laid over images."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(kernel: Sequence[int], *place: Sequence[int]) -> _Geometry:
        """With a number for every dimension, where one may stand for all."""
        rank = len(kernel)
        stride, padding, dilation = (tuple(n) * (rank if len(n) == 1 else 1) for n in place)
        return _Geometry(tuple(kernel), stride, padding, dilation)

    def places(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How often the kernel fits into an image, along each dimension."""
        along = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in along)


class _Rewriter:
    """`maker` says what makes a tensor, `readers` who reads it."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._metas = trace, trace.metas
        self._maker = {number: op for op in trace.ops for number in made_by(op)}
        self._readers: dict[int, list[Op]] = {}
        for op in trace.ops:
            for number in set(op.reads()):
                self._readers.setdefault(number, []).append(op)

    def run(self) -> Trace | None:
        ops = [self._rewritten(op) for op in self._trace.ops]
        if all(new is old for new, old in zip(ops, self._trace.ops, strict=True)):
            return None
        return replace(self._trace, ops=live(_once(ops), self._trace.outputs))

    def _rewritten(self, op: Op) -> Op:
        if op.function is _aten.convolution.default:
            return self._from_transposed(op)
        if op.function is _aten.convolution_backward.default:
            return self._from_backward(op)
        return op

    def _from_transposed(self, op: Op) -> Op:
        """x' * g', transposed, as the gradient of the weight of the convolution that x entered."""
        _, _, bias, stride, padding, dilation, transposed, more, groups = op.args
        x, g = (self._before_exchange(part.index) for part in op.args[:2])
        if x is None or g is None or bias is not None or transposed or any(more) or groups != 1:
            return op
        (result,) = made_by(op)
        end = self._after_exchange(result)
        if end is None:
            return op
        kernel = self._metas[end].shape[2:]
        geometry = _Geometry.of(kernel, dilation, padding, stride)  # they change places
        if geometry.places(self._metas[x].shape[2:]) != self._metas[g].shape[2:]:
            return op  # cut by somebody else, to less than the kernel that makes g of x
        return Op(weight_gradient, (Ref(x), Ref(g), geometry), {}, (end,), True)

    def _before_exchange(self, number: int) -> int | None:
        """The tensor whose first two dimensions are exchanged in this one."""
        maker = self._maker.get(number)
        return maker.args[0].index if maker is not None and _exchanges(maker) else None

    def _after_exchange(self, number: int) -> int | None:
        """What is left of a tensor once its first two dimensions and no others are exchanged.

        A stride may have given the kernel more entries than it has, which are cut off.
        """
        exchanged = False
        while True:
            readers = self._readers.get(number, [])
            is_asked = number in self._trace.outputs
            reader = readers[0] if len(readers) == 1 and not is_asked else None
            if reader is not None and not exchanged and _exchanges(reader):
                exchanged = True
            elif reader is None or not _cuts_the_end(reader):
                return number if exchanged else None
            (number,) = made_by(reader)

    def _from_backward(self, op: Op) -> Op:
        """The backward pass with the weight's gradient by matrices, where that is faster."""
        g, x, weight, _, stride, padding, dilation, transposed, _, groups, mask = op.args
        if not mask[1] or transposed or groups != 1:
            return op
        kernel = self._metas[weight.index].shape[2:]
        geometry = _Geometry.of(kernel, stride, padding, dilation)
        few = _is_small(self._metas[x.index].shape, self._metas[g.index].shape, geometry)
        return replace(op, function=_backward) if few else op


def _exchanges(op: Op) -> bool:
    return op.function is _aten.transpose.int and sorted(op.args[1:]) == [0, 1]


def _cuts_the_end(op: Op) -> bool:
    if op.function is not _aten.slice.Tensor or len(op.args) < 4:
        return False
    _, dim, first, _, *step = op.args
    return dim >= 2 and first == 0 and step in ([], [1])


def _once(ops: list[Op]) -> list[Op]:
    """Without the operations whose results a rewritten one gives before them."""
    seen: set[int] = set()
    result = []
    for op in ops:
        if not seen.issuperset(made_by(op)) or op.guard is not None:
            result.append(op)
        seen.update(made_by(op))
    return result


# --------------------------------------------------------------------------------------------------
# What is put in


def weight_gradient(x: Tensor, g: Tensor, geometry: _Geometry) -> Tensor:
    """dw[o, c, i] = sum_{n, p} g[n, o, p] x[n, c, stride p + dilation i - padding]."""
    if _is_small(x.shape, g.shape, geometry):
        return _by_matrices(x, g, geometry)
    # Of the weight only the shape matters.
    weight = x.new_empty((g.shape[1], x.shape[1], *geometry.kernel))
    place = geometry.stride, geometry.padding, geometry.dilation
    rest = False, [0] * len(geometry.kernel), 1, [False, True, False]
    return _aten.convolution_backward.default(g, x, weight, None, *place, *rest)[1]


def _backward(g: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Any, Tensor, Any]:
    """`convolution_backward` with the weight's gradient by matrices."""
    sizes, stride, padding, dilation, *rest, mask = args
    gradient = _by_matrices(x, g, _Geometry.of(weight.shape[2:], stride, padding, dilation))
    if not (mask[0] or mask[2]):
        return None, gradient, None
    mask = [mask[0], False, mask[2]]
    others = _aten.convolution_backward.default(
        g, x, weight, sizes, stride, padding, dilation, *rest, mask
    )
    return others[0], gradient, others[2]


def _by_matrices(x: Tensor, g: Tensor, geometry: _Geometry) -> Tensor:
    """The same, as the product of g and the patches of x."""
    at = geometry
    patches = _aten.im2col.default(x, at.kernel, at.dilation, at.padding, at.stride)
    rows = g.flatten(2).transpose(0, 1).reshape(g.shape[1], -1)  # (O, N places)
    columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)  # (C kernel, N places)
    return torch.mm(rows, columns.t()).view(g.shape[1], x.shape[1], *at.kernel)


def _is_small(x: Sequence[int], g: Sequence[int], geometry: _Geometry) -> bool:
    """Whether there are few places in all images, compared with channels of both sides."""
    places = g[0] * math.prod(g[2:])
    patches = math.prod(geometry.kernel) > 1 and len(geometry.kernel) == 2
    return patches and _MORE_CHANNELS * places <= min(x[1], g[1])
