# SPDX-License-Identifier: Apache-2.0
"""Fuse a matrix product with the addition after it: X + A B becomes one operation.

    mm, add  ->  addmm            bmm, add  ->  baddbmm

So does X' + (A B)', the form in which the gradient of a weight comes. The result is the same, but
for the rounding of A B, which is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from hesse.tracing.graph import Node, TensorMeta, Value, new_numbers

_aten = torch.ops.aten

# X + A B as one operation, for matrices and for batches of them.
_FUSED = {
    _aten.mm.default: _aten.addmm.default,
    _aten.bmm.default: _aten.baddbmm.default,
}


def fuse_addmm(nodes: list[Node], outputs: list[int], metas: dict[int, TensorMeta]) -> list[Node]:
    """The same nodes with X + A B fused wherever A B has no other reader; adds to `metas`."""
    return _Fusion(nodes, outputs, metas).run()


class _Fusion:
    """`_uses` counts the readers of a value, `_maker` has the node that makes it."""

    def __init__(self, nodes: list[Node], outputs: list[int], metas: dict[int, TensorMeta]) -> None:
        self._nodes, self._metas, self._numbers = nodes, metas, new_numbers(metas)
        self._uses: Counter[int] = Counter(number for node in nodes for number in node.reads())
        self._uses.update(outputs)
        self._maker = {n: node for node in nodes if node.single for n in node.makes()}
        self._fused: set[int] = set()
        """Values that a fused operation no longer makes."""

    def run(self) -> list[Node]:
        """The nodes after the rewrite."""
        nodes = [new for node in self._nodes for new in self._rewritten(node)]
        return [node for node in nodes if not self._fused.intersection(node.results)]

    def _rewritten(self, node: Node) -> list[Node]:
        """What takes the place of a node; the node itself if it is no sum to fuse."""
        addends = [a.index for a in node.args if isinstance(a, Value)]
        if node.function is not _aten.add.Tensor or node.kwargs or len(addends) != 2:
            return [node]
        (total,) = (self._metas[number] for number in node.makes())
        metas = [self._metas[number] for number in addends]
        if any(meta.shape != total.shape or meta.dtype != total.dtype for meta in metas):
            return [node]
        fused = self._sum(node, addends, total) or self._sum_of_transposes(node, addends, total)
        return fused or [node]

    def _sum(self, node: Node, addends: list[int], total: TensorMeta) -> list[Node]:
        """X + A B."""
        if total.is_contiguous:  # later nodes may rely on the strides of the sum
            for product, other in (addends[::-1], addends):
                if self._is_fusable(product):
                    return [self._addmm(product, other, node.results)]
        return []

    def _sum_of_transposes(self, node: Node, addends: list[int], total: TensorMeta) -> list[Node]:
        """X' + (A B)', as (X + A B)'."""
        inner = [n for n in map(self._transposed, addends) if n is not None]
        if len(inner) < 2:
            return []
        for product, other in (inner[::-1], inner):
            meta = self._metas[product]
            has_strides = meta.is_contiguous and total.stride == meta.stride[::-1]
            if self._is_fusable(product) and has_strides:
                sum_ = next(self._numbers)
                self._metas[sum_] = meta
                self._fused.update(addends)
                transpose = replace(node, function=_aten.t.default, args=(Value(sum_),))
                return [self._addmm(product, other, (sum_,)), transpose]
        return []

    def _transposed(self, number: int) -> int | None:
        """The matrix that this value is the transpose of; None if it is none, or used elsewhere."""
        maker = self._maker.get(number)
        if maker is None or maker.function is not _aten.t.default or self._uses[number] != 1:
            return None
        return maker.args[0].index

    def _is_fusable(self, number: int) -> bool:
        """Whether it is a matrix product with one reader."""
        maker = self._maker.get(number)
        return maker is not None and maker.function in _FUSED and self._uses[number] == 1

    def _addmm(self, product: int, other: int, results: tuple) -> Node:
        """`other` plus a matrix product, as one operation."""
        self._fused.add(product)
        source = self._maker[product]
        args = (Value(other), *source.args)
        return replace(source, function=_FUSED[source.function], args=args, results=results)
