# SPDX-License-Identifier: Apache-2.0
"""The intermediate representation: a straight-line list of tensor operations.

A `Graph` is a list of `Node`s. A node calls one operation of torch. The tensors are numbered: a
node reads values by their numbers and gives its results new numbers, so that a pass can rewrite the
list without a tensor in sight. `TensorMeta` is what passes know of a tensor: shape, strides, dtype
and device.

A *guard* is a number or a shape that Python read during tracing (`.item()`, `if x > 0:`, the shape
of `x[mask]`). The node keeps it, and a program compares it at every run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor


class UntraceableError(RuntimeError):
    """A computation that a graph cannot represent; the message says why."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor among the arguments of a node, by its number."""

    index: int


@dataclass(slots=True)
class Node:
    """One call of an operation.

    Args:
        function: the operation, such as `torch.ops.aten.mm.default`.
        args, kwargs: its arguments, with a `Value` for every tensor.
        results: the numbers of the tensors it returns; None for what is no tensor, or no new one.
        single: whether it returns one tensor, not a tuple.
        guard: what Python saw of its result, or None.
    """

    function: Any
    args: tuple
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]
    single: bool
    guard: Any = None
    _reads: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def reads(self) -> tuple[int, ...]:
        """The numbers of the tensors it reads; kept, since every pass asks for them."""
        if self._reads is None:
            self._reads = (*_numbers(self.args), *_numbers(tuple(self.kwargs.values())))
        return self._reads

    def makes(self) -> Iterator[int]:
        """The numbers of the tensors it makes."""
        return (number for number in self.results if number is not None)


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What is known of a tensor without its entries."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @staticmethod
    def of(tensor: Tensor) -> TensorMeta:
        """That of a strided tensor."""
        return TensorMeta(
            tuple(tensor.shape),
            tensor.stride(),
            int(tensor.storage_offset()),
            tensor.dtype,
            tensor.device,
        )

    @property
    def nbytes(self) -> int:
        """The bytes of its entries."""
        return math.prod(self.shape) * self.dtype.itemsize

    def same_layout(self, other: TensorMeta) -> bool:
        """Whether both have the same shape, strides, dtype and device."""
        return (self.shape, self.stride, self.dtype, self.device) == (
            other.shape,
            other.stride,
            other.dtype,
            other.device,
        )

    @property
    def is_contiguous(self) -> bool:
        """Whether its entries lie in memory in their order, row by row."""
        reach = 1
        for stride, size in zip(reversed(self.stride), reversed(self.shape), strict=True):
            if size > 1 and stride != reach:
                return False
            reach *= size
        return True

    @property
    def is_dense(self) -> bool:
        """Whether no two entries share their place in memory, as in an expanded tensor."""
        reach = 1
        for stride, size in sorted(zip(self.stride, self.shape, strict=True)):
            if size > 1:
                if stride < reach:
                    return False
                reach = stride * size
        return True


@dataclass
class Graph:
    """A traced computation: inputs -> outputs, with the tensors that it closes over.

    Args:
        nodes: in the order in which they run.
        inputs, outputs: numbers of values.
        constants: the tensors that the function closes over, by number.
        metas: of every value, by number. A pass that adds values adds to it.
    """

    nodes: list[Node]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Tensor]
    metas: dict[int, TensorMeta] = field(default_factory=dict)

    @property
    def eps(self) -> float:
        """The relative rounding error of its coarsest dtype."""
        dtypes = {meta.dtype for meta in self.metas.values() if meta.dtype.is_floating_point}
        return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _numbers(argument: Any) -> Iterator[int]:
    for part in argument:
        if isinstance(part, Value):
            yield part.index
        elif isinstance(part, (list, tuple)):
            yield from _numbers(part)


def new_numbers(metas: dict[int, TensorMeta]) -> Iterator[int]:
    """Numbers that no value has."""
    return count(max(metas, default=0) + 1)


def substitute(argument: Any, leaf: Callable[[int], Any]) -> Any:
    """An argument with leaf(number) in the place of every value."""
    if isinstance(argument, Value):
        return leaf(argument.index)
    if isinstance(argument, (list, tuple)):
        return type(argument)([substitute(part, leaf) for part in argument])
    return argument


def rename(node: Node, name: Callable[[int], int]) -> Node:
    """The same node, reading the values name(number); its results keep their numbers."""

    def leaf(number: int) -> Value:
        return Value(name(number))

    kwargs = {key: substitute(argument, leaf) for key, argument in node.kwargs.items()}
    return replace(node, args=substitute(node.args, leaf), kwargs=kwargs)


def last_reads(nodes: list[Node], stay: Collection[int]) -> dict[int, list[int]]:
    """Position -> the values that no later node reads, and that are not among `stay`."""
    last: dict[int, int] = {}
    for position, node in enumerate(nodes):
        last.update((n, position) for n in (*node.results, *node.reads()) if n is not None)
    dying: dict[int, list[int]] = {}
    for number, position in last.items():
        if number not in stay:
            dying.setdefault(position, []).append(number)
    return dying


def eliminate_dead_code(nodes: list[Node], outputs: Iterable[int]) -> list[Node]:
    """The nodes that `outputs` depend on, and every node with a guard."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if node.guard is not None or any(number in needed for number in node.results):
            needed.update(node.reads())
            kept.append(node)
    return kept[::-1]


def dependent_values(nodes: Iterable[Node], sources: Collection[int]) -> set[int]:
    """The sources, and all values that are computed from them."""
    found = set(sources)
    for node in nodes:
        if not found.isdisjoint(node.reads()):
            found.update(node.makes())
    return found


def replay_node(node: Node, values: dict[int, Tensor]) -> None:
    """Run a node on the tensors in `values`, and put its results there."""
    kwargs = {key: substitute(a, values.__getitem__) for key, a in node.kwargs.items()}
    result = node.function(*substitute(node.args, values.__getitem__), **kwargs)
    parts = zip(node.results, [result] if node.single else result, strict=True)
    values.update((number, part) for number, part in parts if number is not None)
