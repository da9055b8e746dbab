# SPDX-License-Identifier: Apache-2.0
"""Rewrite the gradient of a convolution's weight in a form that libraries compute fast.

    convolution(x', g')'        ->  convolution_backward(g, x), its part for the weight
    either, with small images   ->  mm(g, patches of x)

torch's second derivative of a convolution writes this gradient as a convolution of transposed
images, with a kernel as large as an image: a form that libraries are not made for. The backward
pass of a convolution takes a half to a third of the time. Where an image has far fewer pixels than
there are channels, one matrix product is several times faster than both. All three are the same
sum, dw[o, c, i] = sum_{n, p} g[n, o, p] x[n, c, stride p + dilation i - padding], in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.graph import Graph, Node, Value, eliminate_dead_code

_aten = torch.ops.aten

# The matrix product is used with at least so many channels for every pixel of g in all images.
_CHANNELS_PER_PIXEL = 4


def rewrite_weight_gradients(graph: Graph) -> Graph | None:
    """The same computation with these gradients in a faster form; None if there are none.

    The new nodes call Python functions, and strides may differ: `retrace` the result.
    """
    return _Rewriter(graph).run()


@dataclass(frozen=True)
class _Geometry:
    """The size of a kernel, and how it moves over an image."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @staticmethod
    def of(kernel: Sequence[int], *moves: Sequence[int]) -> _Geometry:
        """With stride, padding and dilation, where one number may stand for all dimensions."""
        rank = len(kernel)
        stride, padding, dilation = (tuple(n) * (rank if len(n) == 1 else 1) for n in moves)
        return _Geometry(tuple(kernel), stride, padding, dilation)

    def output_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How often the kernel fits into an image of these sizes, along each dimension."""
        along = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in along)


class _Rewriter:
    """`_maker` has the node that makes a value, `_readers` those that read it."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._metas = graph, graph.metas
        self._maker = {number: node for node in graph.nodes for number in node.makes()}
        self._readers: dict[int, list[Node]] = {}
        for node in graph.nodes:
            for number in set(node.reads()):
                self._readers.setdefault(number, []).append(node)

    def run(self) -> Graph | None:
        """The graph after the rewrite; None if there is nothing to rewrite."""
        nodes = [self._rewritten(node) for node in self._graph.nodes]
        if all(new is old for new, old in zip(nodes, self._graph.nodes, strict=True)):
            return None
        nodes = eliminate_dead_code(_without_repeats(nodes), self._graph.outputs)
        return replace(self._graph, nodes=nodes)

    def _rewritten(self, node: Node) -> Node:
        if node.function is _aten.convolution.default:
            return self._from_convolution(node)
        if node.function is _aten.convolution_backward.default:
            return self._from_backward(node)
        return node

    def _from_convolution(self, node: Node) -> Node:
        """A convolution of x' and g', as the gradient of the weight of a convolution of x."""
        _, _, bias, stride, padding, dilation, transposed, more, groups = node.args
        x, g = (self._transposed(part.index) for part in node.args[:2])
        if x is None or g is None or bias is not None or transposed or any(more) or groups != 1:
            return node
        (result,) = node.makes()
        end = self._transposed_result(result)
        if end is None:
            return node
        kernel = self._metas[end].shape[2:]
        # Stride and dilation of the two convolutions change places.
        geometry = _Geometry.of(kernel, dilation, padding, stride)
        if geometry.output_sizes(self._metas[x].shape[2:]) != self._metas[g].shape[2:]:
            return node  # f itself cuts it further, to less than the kernel
        return Node(weight_gradient, (Value(x), Value(g), geometry), {}, (end,), True)

    def _transposed(self, number: int) -> int | None:
        """The value that this one is the transpose of, in the first two dimensions."""
        maker = self._maker.get(number)
        return maker.args[0].index if maker is not None and _transposes(maker) else None

    def _transposed_result(self, number: int) -> int | None:
        """The transpose of this value in the first two dimensions, if nothing else reads it.

        With a stride, the convolution may give more entries than the kernel has; the nodes that cut
        these off are passed over.
        """
        transposed = False
        while True:
            readers = self._readers.get(number, [])
            is_output = number in self._graph.outputs
            reader = readers[0] if len(readers) == 1 and not is_output else None
            if reader is not None and not transposed and _transposes(reader):
                transposed = True
            elif reader is None or not _cuts_the_end(reader):
                return number if transposed else None
            (number,) = reader.makes()

    def _from_backward(self, node: Node) -> Node:
        """A backward pass with the weight's gradient as a matrix product, if that is faster."""
        g, x, weight, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        if not mask[1] or transposed or groups != 1:
            return node
        kernel = self._metas[weight.index].shape[2:]
        geometry = _Geometry.of(kernel, stride, padding, dilation)
        small = _is_small(self._metas[x.index].shape, self._metas[g.index].shape, geometry)
        return replace(node, function=_backward) if small else node


def _transposes(node: Node) -> bool:
    return node.function is _aten.transpose.int and sorted(node.args[1:]) == [0, 1]


def _cuts_the_end(node: Node) -> bool:
    if node.function is not _aten.slice.Tensor or len(node.args) < 4:
        return False
    _, dim, first, _, *step = node.args
    return dim >= 2 and first == 0 and step in ([], [1])


def _without_repeats(nodes: list[Node]) -> list[Node]:
    """Without the nodes whose results an earlier, rewritten node already makes."""
    seen: set[int] = set()
    result = []
    for node in nodes:
        if not seen.issuperset(node.makes()) or node.guard is not None:
            result.append(node)
        seen.update(node.makes())
    return result


# --------------------------------------------------------------------------------------------------
# What the new nodes call


def weight_gradient(x: Tensor, g: Tensor, geometry: _Geometry) -> Tensor:
    """dw[o, c, i] = sum_{n, p} g[n, o, p] x[n, c, stride p + dilation i - padding]."""
    if _is_small(x.shape, g.shape, geometry):
        return _by_matmul(x, g, geometry)
    # Only the shape of the weight matters.
    weight = x.new_empty((g.shape[1], x.shape[1], *geometry.kernel))
    moves = geometry.stride, geometry.padding, geometry.dilation
    rest = False, [0] * len(geometry.kernel), 1, [False, True, False]
    return _aten.convolution_backward.default(g, x, weight, None, *moves, *rest)[1]


def _backward(g: Tensor, x: Tensor, weight: Tensor, *args: Any) -> tuple[Any, Tensor, Any]:
    """`convolution_backward` with the gradient of the weight as a matrix product."""
    sizes, stride, padding, dilation, *rest, mask = args
    gradient = _by_matmul(x, g, _Geometry.of(weight.shape[2:], stride, padding, dilation))
    if not (mask[0] or mask[2]):
        return None, gradient, None
    mask = [mask[0], False, mask[2]]
    others = _aten.convolution_backward.default(
        g, x, weight, sizes, stride, padding, dilation, *rest, mask
    )
    return others[0], gradient, others[2]


def _by_matmul(x: Tensor, g: Tensor, geometry: _Geometry) -> Tensor:
    """The same as `weight_gradient`, as the product of g and the patches of x."""
    at = geometry
    patches = _aten.im2col.default(x, at.kernel, at.dilation, at.padding, at.stride)
    rows = g.flatten(2).transpose(0, 1).reshape(g.shape[1], -1)  # (O, N pixels)
    columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)  # (C kernel, N pixels)
    return torch.mm(rows, columns.t()).view(g.shape[1], x.shape[1], *at.kernel)


def _is_small(x: Sequence[int], g: Sequence[int], geometry: _Geometry) -> bool:
    """Whether g has few pixels in all images, compared with the channels of x and of g."""
    pixels = g[0] * math.prod(g[2:])
    patches = math.prod(geometry.kernel) > 1 and len(geometry.kernel) == 2
    return patches and _CHANNELS_PER_PIXEL * pixels <= min(x[1], g[1])
