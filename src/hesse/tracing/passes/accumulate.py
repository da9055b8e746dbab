# SPDX-License-Identifier: Apache-2.0
"""Fewer, larger operations: a sum of matrix products is accumulated by the products themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch

from hesse.tracing.graph import Meta, Op, Ref
from hesse.tracing.passes.builder import new_numbers

_aten = torch.ops.aten

# X + A B in one operation, for matrices and for batches of them.
_ACCUMULATING = {
    _aten.mm.default: _aten.addmm.default,
    _aten.bmm.default: _aten.baddbmm.default,
}


def accumulate(ops: list[Op], outputs: list[int], metas: dict[int, Meta]) -> list[Op]:
    """The same operations with X + A B as one wherever A B is used for nothing else.

    So is X' + (A B)', as the gradient of a weight comes, with the transposition after it. The sum
    is rounded once less than before. Adds to `metas`.
    """
    return _Fusion(ops, outputs, metas).run()


class _Fusion:
    """`uses` counts who reads a tensor, `maker` says what makes it."""

    def __init__(self, ops: list[Op], outputs: list[int], metas: dict[int, Meta]) -> None:
        self._ops, self._metas, self._numbers = ops, metas, new_numbers(metas)
        self._uses: Counter[int] = Counter(number for op in ops for number in op.reads())
        self._uses.update(outputs)
        self._maker = {n: op for op in ops if op.single for n in op.results if n is not None}
        self._gone: set[int] = set()

    def run(self) -> list[Op]:
        fused = [new for op in self._ops for new in self._fused(op)]
        return [op for op in fused if not self._gone.intersection(op.results)]

    def _fused(self, op: Op) -> list[Op]:
        """A sum as it is now."""
        refs = [a.index for a in op.args if isinstance(a, Ref)]
        if op.function is not _aten.add.Tensor or op.kwargs or len(refs) != 2:
            return [op]
        (total,) = (self._metas[number] for number in op.results if number is not None)
        if any(
            self._metas[n].shape != total.shape or self._metas[n].dtype != total.dtype for n in refs
        ):
            return [op]
        return self._plain(op, refs, total) or self._transposed(op, refs, total) or [op]

    def _plain(self, op: Op, refs: list[int], total: Meta) -> list[Op]:
        """X + A B."""
        if total.is_contiguous:  # what comes next may rely on the strides of the sum
            for product, addend in (refs[::-1], refs):
                if self._is_free(product):
                    return [self._accumulated(product, addend, op.results)]
        return []

    def _transposed(self, op: Op, refs: list[int], total: Meta) -> list[Op]:
        """X' + (A B)'."""
        before = [self._before_transposition(number) for number in refs]
        inner = [number for number in before if number is not None]
        if len(inner) < 2:
            return []
        for product, addend in (inner[::-1], inner):
            meta = self._metas[product]
            if self._is_free(product) and meta.is_contiguous and total.stride == meta.stride[::-1]:
                sum_, again = next(self._numbers), replace(op, function=_aten.t.default)
                self._metas[sum_] = meta
                self._gone.update(refs)
                return [
                    self._accumulated(product, addend, (sum_,)),
                    replace(again, args=(Ref(sum_),)),
                ]
        return []

    def _before_transposition(self, number: int) -> int | None:
        maker = self._maker.get(number)
        if maker is None or maker.function is not _aten.t.default or self._uses[number] != 1:
            return None
        return maker.args[0].index

    def _is_free(self, number: int) -> bool:
        """Whether it is a matrix product that one operation reads."""
        maker = self._maker.get(number)
        return maker is not None and maker.function in _ACCUMULATING and self._uses[number] == 1

    def _accumulated(self, product: int, addend: int, results: tuple) -> Op:
        self._gone.add(product)
        source = self._maker[product]
        function = _ACCUMULATING[source.function]
        return replace(source, function=function, args=(Ref(addend), *source.args), results=results)
