# SPDX-License-Identifier: Apache-2.0
"""The same computation in fewer operations: no copies, nothing computed twice, no x + 0 or 1 x.

Everything here is exact: a step that is left out computed what another step computes, or nothing
that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hesse.tracing.graph import Meta, Op, Ref, Trace, renamed
from hesse.tracing.memory.liveness import SIGNED_VIEWS, is_view
from hesse.tracing.passes.constants import Uniform
from hesse.tracing.program import live

_aten = torch.ops.aten

# They return what they are given, or a copy of it; in a functional program a copy is no different.
_IDENTITIES = frozenset(
    [
        *(_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default),
        *(_aten.clone.default, _aten._to_copy.default, _aten.contiguous.default),
    ]
)

# The operand that leaves the other one as it is, which must be the second where order matters.
_NEUTRAL = {
    _aten.add.Tensor: 0.0,
    _aten.sub.Tensor: 0.0,
    _aten.mul.Tensor: 1.0,
    _aten.mul.Scalar: 1.0,
    _aten.div.Tensor: 1.0,
    _aten.div.Scalar: 1.0,
    _aten.pow.Tensor_Scalar: 1.0,
}
_SYMMETRIC = frozenset([_aten.add.Tensor, _aten.mul.Tensor])
_WITH_NUMBERS = frozenset([_aten.mul.Tensor, _aten.div.Tensor])


def simplify(trace: Trace) -> Trace:
    """See the module."""
    return _Simplifier(trace).run()


class _Simplifier:
    """One sweep over a functional trace that renames every result to the first that equals it."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._metas = trace, trace.metas
        self._name: dict[int, int] = {}
        # A view is its storage, offset, shape and strides; two that agree are one.
        self._root: dict[int, int] = {}
        self._views: dict[tuple[int, Meta], int] = {}
        self._seen: dict[Any, Op] = {}
        self._uniform = Uniform(trace.metas)

    def run(self) -> Trace:
        trace = self._trace
        ops = [op for op in map(self._visit, live(trace.ops, trace.outputs)) if op is not None]
        outputs = [self._name.get(number, number) for number in trace.outputs]
        return replace(trace, ops=live(ops, outputs), outputs=outputs)

    def _visit(self, op: Op) -> Op | None:
        op = renamed(op, lambda number: self._name.get(number, number))
        if op.guard is None and op.single:
            self._uniform.note(op)
            op = self._with_number(op)
            same = self._same_as(op)
            if same is not None:
                self._name[op.results[0]] = same  # pyright: ignore[reportArgumentType]
                return None
        key = (op.function, _frozen(op.args), _frozen(tuple(sorted(op.kwargs.items()))))
        first = self._seen.setdefault(key, op)
        if first is op:
            return op
        for ours, theirs in zip(op.results, first.results, strict=True):
            if ours is not None and theirs is not None:
                self._name[ours] = theirs
        return None

    def _with_number(self, op: Op) -> Op:
        """x u as x c for a tensor u that is c everywhere: nothing as large as x is read for it."""
        if op.function not in _WITH_NUMBERS or op.kwargs:
            return op
        for x, u in self._operands(op):
            value = self._uniform.get(u) if isinstance(u, Ref) else None
            if value is not None and self._is_kept(x, op):
                return replace(op, args=(x, value))
        return op

    def _same_as(self, op: Op) -> int | None:
        """The number of an earlier tensor that this operation gives again."""
        (result,) = op.results
        source = op.args[0].index if op.args and isinstance(op.args[0], Ref) else None
        if result is None or source is None:
            return None
        if op.function in _NEUTRAL:
            return self._without_neutral(op)
        if op.function in _IDENTITIES:
            return source if self._metas[result].same_layout(self._metas[source]) else None
        if not is_view(op.function) or op.function in SIGNED_VIEWS:
            return None
        root = self._root.get(source, source)
        if not self._metas[root].is_dense:
            return None
        view = (root, self._metas[result])
        if self._metas[root] == self._metas[result]:
            return root
        self._root[result] = root
        first = self._views.setdefault(view, result)
        return None if first == result else first

    def _without_neutral(self, op: Op) -> int | None:
        """x, for x + 0, 1 x, x / 1 or x^1."""
        if op.kwargs:
            return None
        for x, other in self._operands(op):
            if self._uniform.get(other) == _NEUTRAL[op.function] and self._is_kept(x, op):
                return x.index
        return None

    def _operands(self, op: Op) -> list[tuple[Any, Any]]:
        """(x, other), and the other way around where that is the same."""
        x, other = op.args[:2]
        return [(x, other), (other, x)] if op.function in _SYMMETRIC else [(x, other)]

    def _is_kept(self, x: Any, op: Op) -> bool:
        """Whether the result looks like x."""
        (result,) = op.results
        assert result is not None
        return isinstance(x, Ref) and self._metas[x.index].same_layout(self._metas[result])


def _frozen(argument: Any) -> Any:
    """A hashable stand-in in which 1, 1.0 and True differ."""
    if isinstance(argument, (list, tuple)):
        return tuple(map(_frozen, argument))
    return argument if isinstance(argument, Ref) else (type(argument), repr(argument))
