# SPDX-License-Identifier: Apache-2.0
"""Liveness analysis: how long the tensors of a program live, and how much memory they take.

A view lives in the memory of the tensor that it is a view of, its *root*. A pointwise node that is
the last reader of an argument may write its result over it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch

from hesse.tracing.backends import onednn
from hesse.tracing.graph import Node, TensorMeta, Value
from hesse.tracing.operations import LAZY_VIEWS, in_place_form, is_view

_aten = torch.ops.aten


class Lifetimes:
    """In whose memory every value lives, and until which node.

    Args:
        nodes: in the order in which they run.
        stay: what is needed after the last node, or is not the program's to free.

    `last` has the position of the last node that needs a root.
    """

    def __init__(self, nodes: list[Node], stay: Collection[int]) -> None:
        self._root: dict[int, int] = {}
        self._lazy: set[int] = set()
        self.last: dict[int, int] = {}
        for position, node in enumerate(nodes):
            results, reads = list(node.makes()), list(node.reads())
            if reads and is_view(node.function):
                self._root.update((number, self.root(reads[0])) for number in results)
                if node.function in LAZY_VIEWS or reads[0] in self._lazy:
                    self._lazy.update(results)
            for number in (*results, *reads):
                self.last[self.root(number)] = position
        staying = {self.root(number) for number in stay}
        self._dying: dict[int, list[int]] = {}
        for root, position in self.last.items():
            if root not in staying:
                self._dying.setdefault(position, []).append(root)

    def root(self, number: int) -> int:
        """The value whose memory this one lives in."""
        return self._root.get(number, number)

    def dying(self, position: int) -> list[int]:
        """The roots that no node after this position needs."""
        return self._dying.get(position, [])

    def is_lazy(self, number: int) -> bool:
        """Whether its entries are the conjugates or negatives of those in memory."""
        return number in self._lazy


def memory_profile(
    nodes: list[Node],
    metas: dict[int, TensorMeta],
    inputs: Collection[int],
    stay: Collection[int],
    *,
    measured_kernels: bool = True,
) -> Iterator[int]:
    """The bytes of all tensors made by `nodes`, while each node runs; inputs do not count."""
    lifetimes = Lifetimes(nodes, [*stay, *inputs])
    held: dict[int, int] = {}
    now = 0
    for position, node in enumerate(nodes):
        over = overwritten_argument(node, position, lifetimes, metas)
        for number in node.makes():
            if not is_view(node.function):
                held[number] = metas[number].nbytes if over is None else 0
                now += held[number]
        if over is not None:  # the memory lives on under another name
            held[next(node.makes())] = held.pop(lifetimes.root(over), 0)
        scratch = 0
        if measured_kernels:
            scratch = onednn.scratch_bytes(node, metas, in_place=over is not None)
        yield now + scratch
        now -= sum(held.pop(root, 0) for root in lifetimes.dying(position))


def reuse_memory(
    nodes: list[Node], metas: dict[int, TensorMeta], stay: Collection[int]
) -> list[Node]:
    """The same nodes, each writing its result over an argument where that is possible."""
    lifetimes = Lifetimes(nodes, stay)
    result = []
    for position, node in enumerate(nodes):
        over = overwritten_argument(node, position, lifetimes, metas)
        result.append(node if over is None else _in_place(node, Value(over)))
    return result


def _in_place(node: Node, over: Value) -> Node:
    """The node, writing its result over one of its arguments."""
    form = in_place_form(node.function)
    assert form is not None
    function, keyword = form
    if keyword is not None:
        return replace(node, function=function, kwargs={**node.kwargs, keyword: over})
    swapped = node.args[0] != over  # a + b = b + a
    return replace(node, function=function, args=node.args[::-1] if swapped else node.args)


def overwritten_argument(
    node: Node, position: int, lifetimes: Lifetimes, metas: dict[int, TensorMeta]
) -> int | None:
    """The argument that the result may be written over; None if there is none."""
    form = in_place_form(node.function)
    if node.guard is not None or not node.single or form is None:
        return None
    (result,) = node.results
    assert result is not None
    commutes = node.function in (_aten.add.Tensor, _aten.mul.Tensor) and not node.kwargs
    for argument in node.args[: 2 if commutes else 1]:
        if not isinstance(argument, Value):
            continue
        number, root = argument.index, lifetimes.root(argument.index)
        if (
            root in lifetimes.dying(position)
            and not lifetimes.is_lazy(number)
            and metas[number].same_layout(metas[result])
            and metas[number].is_dense
            and all(n == number or lifetimes.root(n) != root for n in node.reads())
            # g + g W reads the rows of g that it has written
            and (form[1] != "out" or node.reads().count(number) == 1)
        ):
            return number
    return None
