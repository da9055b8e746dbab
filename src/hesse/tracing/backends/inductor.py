# SPDX-License-Identifier: Apache-2.0
"""A program compiled by TorchInductor, which fuses its operations into kernels of their own.

This is the only file that uses Inductor, which is private to torch; tried on torch 2.13 and 2.15.
It needs a C++ compiler (on a GPU, Triton), which a machine may lack, and takes tens of seconds for
a large program, a few when its cache on disk knows the program from an earlier process. Where
anything fails the caller goes on with the program itself.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from hesse.tracing.backends import onednn
from hesse.tracing.backends.matvec import as_sum
from hesse.tracing.graph import substituted
from hesse.tracing.program import Program

_aten = torch.ops.aten

# Measured on two CPU cores with an empty cache: 22 s for 170 operations, 36 s for 1,800.
_SECONDS = 20.0
_SECONDS_PER_OP = 1e-2


def seconds_to_compile(program: Program) -> float:
    """How long it takes, estimated."""
    return _SECONDS + _SECONDS_PER_OP * len(program)


def can_compile(device: torch.device) -> bool:
    """Whether there is a compiler at all."""
    if device.type == "cuda":
        return True
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def compile_program(program: Program, tensors: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The program as compiled code for tensors like these; a RuntimeError says why it is not."""
    module = as_graph(program)
    try:
        from torch._inductor import compile as inductor

        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled: Any = inductor(module, list(tensors))
            outputs = compiled(*tensors)
    except Exception as error:  # Inductor raises errors of every kind, assertions included
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeError(f"Inductor: {first[0]}") from error
    # Inductor leaves out what changes nothing, and may then return what it was given.
    if _share_memory(outputs, [*tensors, *program.constants.values()]):
        return lambda *inputs: [part.clone() for part in compiled(*inputs)]
    return lambda *inputs: list(compiled(*inputs))


def _share_memory(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    places = {tensor.untyped_storage().data_ptr() for tensor in theirs}
    return any(tensor.untyped_storage().data_ptr() in places for tensor in ours)


def as_graph(program: Program) -> fx.GraphModule:
    """The program in the form that compilers take, for which some operations are written out."""
    graph, root = fx.Graph(), torch.nn.Module()
    nodes: dict[int, Any] = {n: graph.placeholder(f"t{n}") for n in program.inputs}
    for number, tensor in program.constants.items():
        root.register_buffer(f"constant{number}", tensor)
        nodes[number] = graph.get_attr(f"constant{number}")

    for op in program.ops:
        kwargs = {key: substituted(a, nodes.__getitem__) for key, a in op.kwargs.items()}
        args = substituted(op.args, nodes.__getitem__)
        result = as_sum(op, args, program.metas, graph)
        if result is None and onednn.takes(op, program.metas):
            result = graph.call_function(onednn.compiled_mm, args[-2:])
            if len(args) > 2:
                result = graph.call_function(_aten.add.Tensor, (args[0], result))
        if result is None:
            result = graph.call_function(op.function, args, kwargs)
        for position, number in enumerate(op.results):
            if number is None:
                continue
            nodes[number] = (
                result if op.single else graph.call_function(getitem, (result, position))
            )
    graph.output([nodes[number] for number in program.outputs])
    return fx.GraphModule(root, graph)
