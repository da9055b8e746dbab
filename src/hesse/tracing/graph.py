# SPDX-License-Identifier: Apache-2.0
"""Record the tensor operations of a computation, so that it can be run again on other tensors.

A `Tape` sees every operation below autograd: those of f, of its backward pass and of the backward
pass of that. What f does in Python it does not see; it sees the values that Python asked for
(`.item()`, `if x > 0:`, the shape of `x[mask]`) and notes them as *guards*: the program that comes
of the tape computes them again and says when one has changed.

Where recording fails for any reason the caller keeps the graph instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hesse.dispatch import Watch

_aten = torch.ops.aten
_MARK = "_hesse_tape_value"


class UntraceableError(RuntimeError):
    """A computation that a tape cannot stand for; the message says why."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the program, by number."""

    index: int


@dataclass(slots=True)
class Op:
    """One operation: `results` are the numbers of its tensors; `guard` is what Python saw of it."""

    function: Any
    args: tuple
    kwargs: dict[str, Any]
    results: tuple[int | None, ...]
    single: bool
    guard: Any = None
    _reads: tuple[int, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def reads(self) -> tuple[int, ...]:
        """The numbers of the tensors it takes; every pass over a program asks for them."""
        if self._reads is None:
            self._reads = (*_refs(self.args), *_refs(tuple(self.kwargs.values())))
        return self._reads


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known of a tensor without its entries."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """The bytes of its entries."""
        return math.prod(self.shape) * self.dtype.itemsize

    def same_layout(self, other: Meta) -> bool:
        """Whether both have one shape, strides, dtype and device."""
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
class Trace:
    """A recorded computation: inputs -> outputs, with the tensors it closes over."""

    ops: list[Op]
    inputs: list[int]
    outputs: list[int]
    constants: dict[int, Tensor]
    metas: dict[int, Meta] = field(default_factory=dict)

    @property
    def eps(self) -> float:
        """The relative rounding of its coarsest tensor."""
        dtypes = {meta.dtype for meta in self.metas.values() if meta.dtype.is_floating_point}
        return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


class Tape(Watch):
    """Notes every operation on tensors that runs within it."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._ops: list[Op] = []
        self._count = 0
        # Inputs and constants are held by this dict, so that an id stays theirs; a tensor made on
        # the way carries its number itself, and may be freed.
        self._known: dict[int, tuple[Tensor, int]] = {}
        self._constants: dict[int, Tensor] = {}
        self._metas: dict[int, Meta] = {}
        self._token = object()
        self._inputs = [self._hold(tensor) for tensor in inputs]

    def observe(self, function: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        _check_recordable(function)
        reads, named = self._enter(args), {key: self._enter(a) for key, a in kwargs.items()}
        single = not isinstance(result, (tuple, list))
        parts = [result] if single else result
        op = Op(function, reads, named, tuple(self._number(part) for part in parts), single)
        values = [part for part in parts if not isinstance(part, Tensor) and part is not None]
        if values:
            op.guard = result
        elif torch.Tag.dynamic_output_shape in function.tags:
            op.guard = tuple(tuple(part.shape) for part in parts)
        self._ops.append(op)

    def trace(self, outputs: Sequence[Tensor]) -> Trace:
        """What was recorded, as a computation of `outputs`."""
        numbers = [self._look_up(tensor) for tensor in outputs]
        return Trace(self._ops, self._inputs, numbers, self._constants, self._metas)

    def _enter(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return Ref(self._look_up(argument))
        if isinstance(argument, (list, tuple)):
            return type(argument)(map(self._enter, argument))
        return argument

    def _look_up(self, tensor: Tensor) -> int:
        if (known := self._known.get(id(tensor))) is not None:
            return known[1]
        token, number = tensor.__dict__.get(_MARK, (None, -1))
        if token is self._token:
            return number
        number = self._hold(tensor)
        self._constants[number] = tensor
        return number

    def _hold(self, tensor: Tensor) -> int:
        number = self._next(tensor)
        self._known[id(tensor)] = tensor, number
        return number

    def _number(self, part: Any) -> int | None:
        if not isinstance(part, Tensor):
            if isinstance(part, (list, tuple)):
                raise UntraceableError("an operation that returns a nested list")
            return None
        if id(part) in self._known or part.__dict__.get(_MARK, (None,))[0] is self._token:
            return None  # an in-place operation returns its argument
        number = self._next(part)
        setattr(part, _MARK, (self._token, number))
        return number

    def _next(self, tensor: Tensor) -> int:
        number, self._count = self._count, self._count + 1
        if tensor.layout is not torch.strided:
            raise UntraceableError(f"a tensor of layout {tensor.layout}")
        self._metas[number] = Meta(
            tuple(tensor.shape),
            tensor.stride(),
            int(tensor.storage_offset()),
            tensor.dtype,
            tensor.device,
        )
        return number


def _check_recordable(function: Any) -> None:
    if not isinstance(function, torch._ops.OpOverload):
        raise UntraceableError(f"the higher-order operation {function}")
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise UntraceableError(f"{function} draws random numbers")


def _refs(argument: Any) -> Iterator[int]:
    for part in argument:
        if isinstance(part, Ref):
            yield part.index
        elif isinstance(part, (list, tuple)):
            yield from _refs(part)


def substituted(argument: Any, leaf: Callable[[int], Any]) -> Any:
    """An argument with leaf(number) in the place of every tensor."""
    if isinstance(argument, Ref):
        return leaf(argument.index)
    if isinstance(argument, (list, tuple)):
        return type(argument)([substituted(part, leaf) for part in argument])
    return argument


def renamed(op: Op, name: Callable[[int], int]) -> Op:
    """The same operation on the tensors of other numbers."""

    def leaf(number: int) -> Ref:
        return Ref(name(number))

    kwargs = {key: substituted(argument, leaf) for key, argument in op.kwargs.items()}
    return replace(op, args=substituted(op.args, leaf), kwargs=kwargs)


def last_reads(ops: list[Op], stay: Collection[int]) -> dict[int, list[int]]:
    """Position -> the tensors that no operation after it reads, and that need not stay."""
    last: dict[int, int] = {}
    for position, op in enumerate(ops):
        last.update((n, position) for n in (*op.results, *op.reads()) if n is not None)
    dying: dict[int, list[int]] = {}
    for number, position in last.items():
        if number not in stay:
            dying.setdefault(position, []).append(number)
    return dying


def replay_op(op: Op, env: dict[int, Tensor]) -> None:
    """Run one operation of a tape on the tensors of `env`, which takes its results."""
    kwargs = {key: substituted(a, env.__getitem__) for key, a in op.kwargs.items()}
    result = op.function(*substituted(op.args, env.__getitem__), **kwargs)
    parts = zip(op.results, [result] if op.single else result, strict=True)
    env.update((number, part) for number, part in parts if number is not None)
