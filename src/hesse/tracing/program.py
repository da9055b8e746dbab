# SPDX-License-Identifier: Apache-2.0
"""Straight-line programs, and the Python function that one is turned into.

Tensors are freed, or written over, after their last use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.backends import onednn
from hesse.tracing.flops import flops
from hesse.tracing.graph import Meta, Op, Ref, Trace, last_reads, replay_op
from hesse.tracing.memory.liveness import Lifetimes, in_place, is_view, made_by, occupied
from hesse.vectors.rows import joined

_aten = torch.ops.aten

# From so many bytes on a vector that is joined has memory of its own from the system.
_LONG = 1 << 22

# The same operations, by torch's own bindings: a third of a microsecond less a call.
_QUICK = {
    getattr(getattr(_aten, name), overload): getattr(torch, name)
    for name, overload in [
        *(("mm", "default"), ("bmm", "default"), ("addmm", "default"), ("baddbmm", "default")),
        *(("addmm", "out"), ("baddbmm", "out")),
        *(("add", "Tensor"), ("sub", "Tensor"), ("mul", "Tensor"), ("div", "Tensor")),
        *(("t", "default"), ("transpose", "int"), ("select", "int"), ("permute", "default")),
    ]
} | {
    getattr(getattr(_aten, name), overload): getattr(torch.Tensor, name)
    for name, overload in [
        *(("add_", "Tensor"), ("sub_", "Tensor"), ("mul_", "Tensor"), ("div_", "Tensor")),
    ]
}


class GuardError(RuntimeError):
    """A value that Python saw while the program was recorded is another one now."""


class Program:
    """inputs -> outputs, with the constants bound: call it with one tensor for each input.

    Args:
        trace: where the numbers get their meaning.
        ops, inputs, outputs: the part of it that the program is.
    """

    def __init__(
        self, trace: Trace, ops: list[Op], inputs: Sequence[int], outputs: Sequence[int]
    ) -> None:
        self.ops, self.inputs, self.outputs = ops, list(inputs), list(outputs)
        used = {number for op in ops for number in op.reads()} | set(outputs)
        self.constants = {k: tensor for k, tensor in trace.constants.items() if k in used}
        self.metas = trace.metas
        self._function: Callable[..., list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.ops)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs."""
        if self._function is None:
            self._function = compile_python(self)
        return self._function(*tensors)

    @property
    def bytes_per_op(self) -> float:
        """What an operation writes, on average."""
        written = [self._bytes(op) for op in self.ops]
        return sum(written) / max(1, len(written))

    def peak_bytes(self) -> int:
        """The most that tensors made on the way hold at one time, the outputs included."""
        inputs = [*self.inputs, *self.constants]
        return max(occupied(self.ops, self.metas, inputs, self.outputs), default=0)

    @cached_property
    def makes_outputs(self) -> bool:
        """Whether its outputs are tensors of their own: no inputs, constants or views of these."""
        lifetimes = Lifetimes(self.ops, self.outputs)
        made = {number for op in self.ops for number in made_by(op)}
        roots = [lifetimes.root(number) for number in self.outputs]
        return made.issuperset(roots) and len(set(roots)) == len(roots)

    def replay(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs, by the operations as they stand: slower, and nothing is overwritten."""
        env = dict(zip(self.inputs, tensors, strict=True)) | self.constants
        for op in self.ops:
            replay_op(op, env)
        return [env[number] for number in self.outputs]

    def flops(self) -> int:
        """Floating-point operations in matrix products and convolutions, as torch counts them."""
        return sum(flops(op, self.metas) for op in self.ops)

    def _bytes(self, op: Op) -> int:
        if is_view(op.function):
            return 0
        return sum(self.metas[number].nbytes for number in op.results if number is not None)


def run(program: Callable[..., list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """The outputs of a program, without a graph."""
    with torch.inference_mode(False), torch.no_grad():
        return program(*tensors)


def live(ops: list[Op], outputs: Iterable[int]) -> list[Op]:
    """The operations that `outputs` depend on, and the guards among them all."""
    needed, kept = set(outputs), []
    for op in reversed(ops):
        if op.guard is not None or any(number in needed for number in op.results):
            needed.update(op.reads())
            kept.append(op)
    return kept[::-1]


# --------------------------------------------------------------------------------------------------
# As a Python function


def compile_python(program: Program) -> Callable[..., list[Tensor]]:
    """A function with one line an operation, and one to free what is not needed any more."""
    names: dict[str, Any] = {}
    lines = [f"def program({', '.join(f't{n}' for n in program.inputs)}):"]
    names.update({f"t{n}": tensor for n, tensor in program.constants.items()})
    stay = {*program.inputs, *program.outputs, *program.constants}
    ops = in_place(program.ops, program.metas, stay)
    last = last_reads(ops, {*program.outputs, *program.constants})
    for position, op in enumerate(ops):
        lines.append(f"    {_statement(op, position, names, program.metas)}")
        if dying := last.get(position):
            lines.append("    del " + ", ".join(f"t{n}" for n in dying))
    lines.append(f"    return [{', '.join(f't{n}' for n in program.outputs)}]")
    exec(compile("\n".join(lines), "<hesse program>", "exec"), names)
    return names["program"]


def _statement(op: Op, position: int, names: dict[str, Any], metas: dict[int, Meta]) -> str:
    function = f"f{position}"
    names[function] = _function(op, metas)
    args = [_literal(a, names) for a in op.args]
    args += [f"{key}={_literal(a, names)}" for key, a in op.kwargs.items()]
    call = f"{function}({', '.join(args)})"
    if op.guard is not None:
        names[f"g{position}"] = op
        names["guarded"] = _guarded
        call = f"guarded(g{position}, {call})"
    left = ["_" if n is None else f"t{n}" for n in op.results]
    return f"{left[0]} = {call}" if op.single else f"{', '.join(left)}, = {call}"


def _function(op: Op, metas: dict[int, Meta]) -> Callable:
    """What runs the operation with the least ado."""
    if op.function is _aten.cat.default and not any(op.args[1:]):
        parts = {(len(metas[n].shape), metas[n].dtype) for n in op.reads()}
        (result,) = (metas[n] for n in op.results if n is not None)
        if parts == {(1, result.dtype)} and result.nbytes >= _LONG:
            return lambda vectors, _=0: joined(vectors)
    if onednn.takes(op, metas):
        return onednn.form(op)
    return _QUICK.get(op.function) or getattr(op.function, "_op", op.function)


def _literal(argument: Any, names: dict[str, Any]) -> str:
    if isinstance(argument, Ref):
        return f"t{argument.index}"
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_literal(part, names) for part in argument)
        return f"[{inner}]"
    if argument is None or isinstance(argument, (bool, int)):
        return repr(argument)
    name = f"c{len(names)}"
    names[name] = argument
    return name


def _guarded(op: Op, result: Any) -> Any:
    """`result` itself if Python would see in it what it saw when the program was recorded."""
    if torch.Tag.dynamic_output_shape in op.function.tags:
        parts = [result] if op.single else result
        seen: Any = tuple(tuple(part.shape) for part in parts)
    else:
        seen = result
    if seen != op.guard and not (seen != seen and op.guard != op.guard):  # NaN is NaN
        raise GuardError(f"{op.function} gave {op.guard} at the first point, {seen} at this one")
    return result
