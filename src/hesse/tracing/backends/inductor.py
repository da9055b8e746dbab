# SPDX-License-Identifier: Apache-2.0
"""Compile a program by TorchInductor, which fuses its operations into kernels of their own.

This is the only file that uses Inductor, which is private to torch; tried on torch 2.13 and 2.15.
It needs a C++ compiler (on a GPU, Triton), which a machine may lack. A large program takes tens of
seconds, and a few if Inductor's cache on disk has it from an earlier process. Where anything fails,
a RuntimeError says why, and the caller goes on with the program itself.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from hesse.tracing.backends import onednn
from hesse.tracing.backends.matvec import as_sum
from hesse.tracing.graph import Node, substitute
from hesse.tracing.program import Program

_aten = torch.ops.aten

# Measured on two CPU cores with an empty cache: 22 s for 170 nodes, 36 s for 1,800.
_SECONDS = 20.0
_SECONDS_PER_NODE = 1e-2

_READS_ELSEWHERE = {_aten.index_select.default, _aten.unfold.default}

# Of a value that is computed again: operations, tensors that it reads. By default 30 and 4.
_LIMITS = {"realize_opcount_threshold": 8, "realize_reads_threshold": 2}


def seconds_to_compile(program: Program) -> float:
    """An estimate of how long `compile_program` takes."""
    return _SECONDS + _SECONDS_PER_NODE * len(program)


def can_compile(device: torch.device) -> bool:
    """Whether there is a compiler for this device."""
    if device.type == "cuda":
        return True
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_program(program: Program, tensors: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The program as compiled code, for tensors of these shapes.

    Raises:
        RuntimeError: Inductor failed.
    """
    module = as_fx(program)
    try:
        from torch._inductor import compile as inductor

        with torch.no_grad(), warnings.catch_warnings(), _storing(program):
            warnings.simplefilter("ignore")
            compiled: Any = inductor(module, list(tensors))
            outputs = compiled(*tensors)
    except Exception as error:  # Inductor raises errors of every kind, assertions included
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(f"Inductor: {first[0]}") from error
    # Inductor leaves out operations that change nothing, and may then return one of its inputs.
    if _share_memory(outputs, [*tensors, *program.constants.values()]):
        return lambda *inputs: [part.clone() for part in compiled(*inputs)]
    return lambda *inputs: list(compiled(*inputs))


def _storing(program: Program) -> AbstractContextManager[Any]:
    """Within it, Inductor stores more values if the program reads entries at other places.

    A kernel that reads a value there computes it again, each time, with all that it is made of.
    """
    from torch._inductor import config

    limits = {name: most for name, most in _LIMITS.items() if hasattr(config, name)}
    reads = any(node.function in _READS_ELSEWHERE for node in program.nodes)
    return config.patch(limits) if reads else nullcontext()


def _share_memory(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    places = {tensor.untyped_storage().data_ptr() for tensor in theirs}
    return any(tensor.untyped_storage().data_ptr() in places for tensor in ours)


def as_fx(program: Program) -> fx.GraphModule:
    """The program as an `fx` graph, the form that Inductor takes."""
    graph, root = fx.Graph(), torch.nn.Module()
    values: dict[int, Any] = {n: graph.placeholder(f"t{n}") for n in program.inputs}
    for number, tensor in program.constants.items():
        root.register_buffer(f"constant{number}", tensor)
        values[number] = graph.get_attr(f"constant{number}")
    for node in program.nodes:
        result = _fx_node(node, program, values, graph)
        for position, number in enumerate(node.results):
            if number is not None:
                part = result
                if not node.single:
                    part = graph.call_function(getitem, (result, position))
                values[number] = part
    graph.output([values[number] for number in program.outputs])
    return fx.GraphModule(root, graph)


def _fx_node(node: Node, program: Program, values: dict[int, Any], graph: fx.Graph) -> Any:
    """A node of the program in `graph`: as sums, by oneDNN, or as it is."""
    args = substitute(node.args, values.__getitem__)
    result = as_sum(node, args, program.metas, graph)
    if result is not None:
        return result
    if program.measured_kernels and onednn.takes(node, program.metas):
        result = graph.call_function(onednn.compiled_mm, args[-2:])
        return (
            result if len(args) == 2 else graph.call_function(_aten.add.Tensor, (args[0], result))
        )
    kwargs = {key: substitute(a, values.__getitem__) for key, a in node.kwargs.items()}
    return graph.call_function(node.function, args, kwargs)
