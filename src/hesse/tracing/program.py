# SPDX-License-Identifier: Apache-2.0
"""A program: the nodes of a graph between some inputs and outputs, run as a Python function.

The function has one line for every node. A tensor is freed, or written over, after its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hesse.tracing.backends import onednn, pooling
from hesse.tracing.flops import flops
from hesse.tracing.graph import Graph, Node, Value, last_reads, replay_node
from hesse.tracing.memory.liveness import Lifetimes, memory_profile, reuse_memory
from hesse.tracing.operations import direct_call, has_dynamic_shape, is_view
from hesse.vectors.rows import joined

_aten = torch.ops.aten

# A concatenated vector of at least so many bytes gets memory of its own from the system.
_LARGE = 1 << 22

# The same operations by torch's own bindings, which take a third of a microsecond less per call.
_BINDINGS = {
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
    """A number or a shape that Python read during tracing differs in this run."""


class Program:
    """inputs -> outputs, with the constants bound: call it with one tensor for each input.

    Args:
        graph: has the constants, and the metas of all values.
        nodes, inputs, outputs: the part of it that is run.
        measured_kernels: whether kernels may be picked by timing them (`backends.onednn`). If
            False, the program runs the same kernels in every process.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: list[Node],
        inputs: Sequence[int],
        outputs: Sequence[int],
        *,
        measured_kernels: bool = True,
    ) -> None:
        self.nodes, self.inputs, self.outputs = nodes, list(inputs), list(outputs)
        used = {number for node in nodes for number in node.reads()} | set(outputs)
        self.constants = {k: tensor for k, tensor in graph.constants.items() if k in used}
        self.metas, self.measured_kernels = graph.metas, measured_kernels
        self._function: Callable[..., list[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.nodes)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs."""
        if self._function is None:
            self._function = compile_python(self)
        return self._function(*tensors)

    @cached_property
    def bytes_per_node(self) -> float:
        """How many bytes a node writes, on average."""
        return self.written_bytes / max(1, len(self.nodes))

    @cached_property
    def written_bytes(self) -> int:
        """How many bytes all nodes write."""
        return sum(self._written_bytes(node) for node in self.nodes)

    @property
    def uses_onednn(self) -> bool:
        """Whether oneDNN computes one of its matrix products."""
        return self.measured_kernels and any(onednn.takes(n, self.metas) for n in self.nodes)

    def peak_bytes(self) -> int:
        """The most bytes that tensors made by its nodes hold at one time, outputs included."""
        inputs = [*self.inputs, *self.constants]
        profile = memory_profile(
            *(self.nodes, self.metas, inputs, self.outputs),
            measured_kernels=self.measured_kernels,
        )
        return max(profile, default=0)

    @cached_property
    def makes_outputs(self) -> bool:
        """Whether its outputs share no memory with inputs, constants, or one another."""
        lifetimes = Lifetimes(self.nodes, self.outputs)
        made = {number for node in self.nodes for number in node.makes()}
        roots = [lifetimes.root(number) for number in self.outputs]
        return made.issuperset(roots) and len(set(roots)) == len(roots)

    def replay(self, *tensors: Tensor) -> list[Tensor]:
        """The outputs, node by node: slower than a call, and nothing is written over."""
        values = dict(zip(self.inputs, tensors, strict=True)) | self.constants
        for node in self.nodes:
            replay_node(node, values)
        return [values[number] for number in self.outputs]

    def flops(self) -> int:
        """Floating-point operations in matrix products and convolutions, as torch counts them."""
        return sum(flops(node, self.metas) for node in self.nodes)

    def _written_bytes(self, node: Node) -> int:
        if is_view(node.function):
            return 0
        return sum(self.metas[number].nbytes for number in node.makes())


def run(program: Callable[..., list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """The outputs of a program, with autograd switched off."""
    with torch.no_grad():
        return program(*tensors)


# --------------------------------------------------------------------------------------------------
# As a Python function


def compile_python(program: Program) -> Callable[..., list[Tensor]]:
    """A function with one line for every node, and a `del` for what is not needed any more."""
    names: dict[str, Any] = {"guarded": _guarded}
    lines = [f"def program({', '.join(f't{n}' for n in program.inputs)}):"]
    names.update({f"t{n}": tensor for n, tensor in program.constants.items()})
    stay = {*program.inputs, *program.outputs, *program.constants}
    nodes = reuse_memory(program.nodes, program.metas, stay)
    last = last_reads(nodes, {*program.outputs, *program.constants})
    for position, node in enumerate(nodes):
        names[f"f{position}"] = _callable(node, program)
        lines.append(f"    {_statement(node, position, names)}")
        if dying := last.get(position):
            lines.append("    del " + ", ".join(f"t{n}" for n in dying))
    lines.append(f"    return [{', '.join(f't{n}' for n in program.outputs)}]")
    exec(compile("\n".join(lines), "<hesse program>", "exec"), names)
    return names["program"]


def _statement(node: Node, position: int, names: dict[str, Any]) -> str:
    """A line of the function, such as `t3 = f2(t0, t1)`."""
    args = [_literal(a, names) for a in node.args]
    args += [f"{key}={_literal(a, names)}" for key, a in node.kwargs.items()]
    call = f"f{position}({', '.join(args)})"
    if node.guard is not None:
        names[f"n{position}"] = node
        call = f"guarded(n{position}, {call})"
    left = ["_" if n is None else f"t{n}" for n in node.results]
    return f"{left[0]} = {call}" if node.single else f"{', '.join(left)}, = {call}"


def _callable(node: Node, program: Program) -> Callable:
    """What runs a node with the least overhead."""
    metas = program.metas
    if node.function is _aten.cat.default and not any(node.args[1:]):
        parts = {(len(metas[n].shape), metas[n].dtype) for n in node.reads()}
        (result,) = (metas[n] for n in node.makes())
        if parts == {(1, result.dtype)} and result.nbytes >= _LARGE:
            return lambda vectors, _=0: joined(vectors)
    if program.measured_kernels and onednn.takes(node, metas):
        return onednn.kernel(node.function)
    if pooling.takes(node, metas):
        return pooling.max_pool
    return _BINDINGS.get(node.function) or direct_call(node.function)


def _literal(argument: Any, names: dict[str, Any]) -> str:
    """An argument as Python code; what has no literal gets a name."""
    if isinstance(argument, Value):
        return f"t{argument.index}"
    if isinstance(argument, (list, tuple)):
        inner = ", ".join(_literal(part, names) for part in argument)
        return f"[{inner}]"
    if argument is None or isinstance(argument, (bool, int)):
        return repr(argument)
    name = f"c{len(names)}"
    names[name] = argument
    return name


def _guarded(node: Node, result: Any) -> Any:
    """`result` itself, if Python would read of it what it read during tracing."""
    seen = result
    if has_dynamic_shape(node.function):
        seen = tuple(tuple(part.shape) for part in ([result] if node.single else result))
    both_nan = seen != seen and node.guard != node.guard
    if seen != node.guard and not both_nan:
        raise GuardError(
            f"{node.function} gave {node.guard} at the first point, {seen} at this one"
        )
    return result
