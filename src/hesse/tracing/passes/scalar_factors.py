# SPDX-License-Identifier: Apache-2.0
"""Fold scalar factors, of which derivatives are full: signs, and powers that have come down.

    a (b x)  ->  (a b) x          (a x) y  ->  a (x y)          x + a y  ->  one operation

A factor moves through products, sums and views until an operation cannot take it: a pass over
memory less for every factor on the way. The result is the same up to rounding.

An expanded tensor, as the derivative of a mean is one, is not written out to be divided: a sum or a
product with an entry for each of its own reads it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from hesse.tracing.graph import (
    Node,
    TensorMeta,
    Value,
    eliminate_dead_code,
    new_numbers,
    substitute,
)
from hesse.tracing.operations import LAZY_VIEWS, is_view

_aten = torch.ops.aten

_PRODUCTS = frozenset([_aten.mul.Tensor, _aten.mul.Scalar])
_QUOTIENTS = frozenset([_aten.div.Tensor, _aten.div.Scalar])
_SUMS = {_aten.add.Tensor: 1.0, _aten.sub.Tensor: -1.0}

# With the sum after it, each becomes one operation as it is.
_FUSABLE = frozenset([_aten.mm.default, _aten.bmm.default])

# A product of factors outside of these bounds could overflow where theirs one by one did not.
_LEAST, _MOST = 1e-12, 1e12


def fold_scalar_factors(
    nodes: Sequence[Node], outputs: Sequence[int], metas: dict[int, TensorMeta]
) -> list[Node]:
    """The same nodes with fewer factors, if they then write less; adds to `metas`."""
    folded = _Folder(metas).run(nodes, outputs)
    return min((list(nodes), folded), key=lambda them: _price(them, metas))


def _price(nodes: Iterable[Node], metas: dict[int, TensorMeta]) -> tuple[int, int]:
    """The bytes that nodes write, and how many they are."""
    made = [n for node in nodes if not is_view(node.function) for n in node.makes()]
    return sum(metas[number].nbytes for number in made), len(made)


class _Folder:
    """`_factor` has a and x for every value a x that is not made yet, or is x itself."""

    def __init__(self, metas: dict[int, TensorMeta]) -> None:
        self._metas, self._numbers = metas, new_numbers(metas)
        self._factor: dict[int, tuple[float, int]] = {}
        self._made: dict[tuple[float, int], int] = {}
        self._products: set[int] = set()
        """Matrix products, and views of them."""
        self._nodes: list[Node] = []

    def run(self, nodes: Sequence[Node], outputs: Sequence[int]) -> list[Node]:
        """The nodes after the rewrite, whose outputs keep their numbers."""
        stay = set(outputs)
        for node in nodes:
            if not self._is_folded(node, stay):
                self._nodes.append(self._on_values(node))
            is_shown = is_view(node.function) and not self._products.isdisjoint(node.reads())
            if node.function in _FUSABLE or is_shown:
                self._products.update(node.makes())
        return eliminate_dead_code(self._nodes, outputs)

    # -- Rules -------------------------------------------------------------------------------------

    def _is_folded(self, node: Node, stay: set[int]) -> bool:
        """Whether the result is a factor times another value from now on."""
        (result,) = node.results if len(node.results) == 1 else (None,)
        if node.guard is not None or not node.single or result is None:
            return False
        if not self._metas[result].dtype.is_floating_point or not self._are_real(node):
            return False
        count = len(self._nodes)
        found = self._folded(node, self._metas[result])
        if found is None or not self._fits(*found, result):
            return False
        if found[0] == 1.0 and len(self._nodes) > count:  # the last node makes it
            self._nodes[-1] = replace(self._nodes[-1], results=(result,))
            return True
        self._factor[result] = found
        if result in stay:
            self._make(result, always=True)
        return True

    def _folded(self, node: Node, meta: TensorMeta) -> tuple[float, int] | None:
        """(a, x) if a node computes a x, which has this meta."""
        function, args, kwargs = node.function, node.args, node.kwargs
        if function is _aten.neg.default:
            return self._times(-1.0, args[0])
        if function in _SUMS and all(isinstance(x, Value) for x in args):
            scale = _SUMS[function] * kwargs.get("alpha", 1.0)
            return self._sum(args[0].index, args[1].index, scale, meta)
        if kwargs:
            return None
        if function in _PRODUCTS and all(isinstance(x, Value) for x in args):
            return self._product(args[0], args[1], meta)
        if function in _PRODUCTS and _is_number(args[1]):
            return self._times(float(args[1]), args[0])
        if function in _QUOTIENTS and _is_number(args[1]) and args[1]:
            return self._times(1.0 / float(args[1]), args[0])
        if is_view(function) and function not in LAZY_VIEWS and len(node.reads()) == 1:
            return self._view(node, meta)
        return None

    def _times(self, a: float, x: Value) -> tuple[float, int]:
        b, root = self._of(x.index)
        return a * b, root

    def _product(self, x: Value, y: Value, meta: TensorMeta) -> tuple[float, int] | None:
        """(a x) (b y) as a b (x y)."""
        (a, one), (b, other) = self._of(x.index), self._of(y.index)
        if a == b == 1.0 or not self._is_written_out(meta, x.index, y.index):
            return None
        return a * b, self._call(meta, _aten.mul.Tensor, Value(one), Value(other))

    def _sum(self, x: int, y: int, scale: float, meta: TensorMeta) -> tuple[float, int] | None:
        """a x + b y as a (x + b/a y), where that is exact, or as y + a x."""
        (a, one), (b, other) = self._of(x), self._of(y)
        b *= scale
        if a == b == 1.0 or self._products & {one, other}:
            return None
        if not self._is_written_out(meta, x, y):
            return None
        if b == 1.0 and self._metas[one].same_layout(self._metas[other]):
            (a, one), (b, other) = (b, other), (a, one)
        if a != b and abs(math.frexp(a)[0]) != 0.5:  # no power of two
            a, one = 1.0, self._make(x)
        kwargs = {} if a == b else {"alpha": b / a}
        return a, self._call(meta, _aten.add.Tensor, Value(one), Value(other), **kwargs)

    def _view(self, node: Node, meta: TensorMeta) -> tuple[float, int] | None:
        """A view of a x as a times the view of x."""
        (number,) = node.reads()
        a, root = self._of(number)
        if a == 1.0 or not self._has_layout_of_root(number):
            return None
        moved = self._metas[root].offset - self._metas[number].offset
        args = substitute(node.args, lambda _: Value(root))
        return a, self._call(replace(meta, offset=meta.offset + moved), node.function, *args)

    # -- Values ------------------------------------------------------------------------------------

    def _of(self, number: int) -> tuple[float, int]:
        return self._factor.get(number, (1.0, number))

    def _call(self, meta: TensorMeta, function: Any, *args: Any, **kwargs: Any) -> int:
        """Append a node, and return the number of its result.

        A value has the layout of what it is a factor times, so the result that of the old one.
        """
        number = next(self._numbers)
        self._metas[number] = meta
        self._nodes.append(Node(function, args, kwargs, (number,), True))
        return number

    def _make(self, number: int, *, always: bool = False) -> int:
        """The number of a value that is made: this one, or an equal one unless `always`."""
        a, root = self._of(number)
        made = root if a == 1.0 else self._made.get((a, root))
        if made is None or (always and made != number):
            if a == -1.0:
                node = Node(_aten.neg.default, (Value(root),), {}, (number,), True)
            else:
                node = Node(_aten.mul.Tensor, (Value(root), a), {}, (number,), True)
            self._nodes.append(node)
            self._made.setdefault((a, root), number)
            made = number
        return made

    def _on_values(self, node: Node) -> Node:
        """A node that reads what is made."""
        if not any(number in self._factor for number in node.reads()):
            return node
        names = {number: self._make(number) for number in node.reads()}

        def leaf(number: int) -> Value:
            return Value(names[number])

        kwargs = {key: substitute(argument, leaf) for key, argument in node.kwargs.items()}
        args = substitute(node.args, leaf)
        return Node(node.function, args, kwargs, node.results, node.single, node.guard)

    def _are_real(self, node: Node) -> bool:
        return all(self._metas[number].dtype.is_floating_point for number in node.reads())

    def _fits(self, a: float, root: int, result: int) -> bool:
        """Whether a x can take the place of a value."""
        source, meta = self._metas[root], self._metas[result]
        is_expanded = meta.is_contiguous and replace(source, stride=meta.stride).same_layout(meta)
        # With the factor 1 the root itself would be read, in another layout.
        fits = source.same_layout(meta) or (is_expanded and a != 1.0)
        return fits and _LEAST <= abs(a) <= _MOST

    def _has_layout_of_root(self, number: int) -> bool:
        """Whether it is not what an expanded tensor would be if it were written out."""
        return self._metas[self._of(number)[1]].same_layout(self._metas[number])

    def _is_written_out(self, meta: TensorMeta, *numbers: int) -> bool:
        """Whether an operation on roots makes what it makes of these values, in the same layout."""
        roots = [self._metas[self._of(number)[1]] for number in numbers]
        if all(map(self._has_layout_of_root, numbers)):
            return True
        return any(root.same_layout(meta) for root in roots)


def _is_number(argument: Any) -> bool:
    return isinstance(argument, (int, float)) and not isinstance(argument, bool)
