# SPDX-License-Identifier: Apache-2.0
"""The recording of a run, made purely functional: in-place operations become their other versions.

Autograd writes to tensors of its own that nobody has views of. There the result has a new name, and
that is all. Anything else is left to torch's functionalisation, whose first use in a process
imports a second's worth of modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hesse.tracing.graph import (
    Op,
    Tape,
    Trace,
    UntraceableError,
    last_reads,
    renamed,
    replay_op,
)
from hesse.tracing.memory.liveness import is_view
from hesse.tracing.passes.builder import new_numbers

_aten = torch.ops.aten

# Entry by entry, in the dtype of the first argument if the others have it too.
_OTHER_VERSIONS = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.add_.Scalar: _aten.add.Scalar,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.mul_.Scalar: _aten.mul.Scalar,
    _aten.div_.Tensor: _aten.div.Tensor,
    _aten.div_.Scalar: _aten.div.Scalar,
    _aten.neg_.default: _aten.neg.default,
    _aten.relu_.default: _aten.relu.default,
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.tanh_.default: _aten.tanh.default,
}

# Views by which torch promises not to look at the whole again.
_PARTS_OF_NOTHING = {_aten.unsafe_split.Tensor, _aten.unsafe_split_with_sizes.default}


def record(function: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> Trace:
    """The functional trace of function(), which computes from `inputs` and what it closes over.

    The inputs must be tensors of their own, without aliases among them.
    """
    if len({id(tensor) for tensor in inputs}) != len(inputs):
        raise UntraceableError("the same tensor is given twice")
    with Tape(inputs) as tape:
        outputs = function()
    trace = tape.trace(outputs)
    del outputs  # they are as large as what is recorded next
    if not any(map(_writes, trace.ops)):
        return trace
    named = _by_names(trace)
    if named is None:
        return recorded_again(trace, inputs, torch.func.functionalize)
    trace, has_same_strides = named
    return trace if has_same_strides else recorded_again(trace, inputs)


def _writes(op: Op) -> bool:
    return op.function._schema.is_mutable


def _by_names(trace: Trace) -> tuple[Trace, bool] | None:
    """The same with a new tensor for every one that is written to; None where that does not do.

    And whether these tensors have the strides of the old ones.
    """
    now: dict[int, int] = {}
    metas, numbers = dict(trace.metas), new_numbers(trace.metas)
    shared = {*trace.inputs, *trace.constants}
    ops, same_strides = [], True
    for before in trace.ops:
        op = renamed(before, lambda number: now.get(number, number))
        if not _writes(op):
            if is_view(op.function):
                parts = () if op.function in _PARTS_OF_NOTHING else op.results
                shared.update(number for number in (*op.reads(), *parts) if number is not None)
            ops.append(op)
            continue
        target = None if op.function not in _OTHER_VERSIONS else op.args[0].index
        one_dtype = len({metas[number].dtype for number in op.reads()}) == 1
        if target is None or target in shared or not one_dtype:
            return None
        same_strides &= metas[target].is_contiguous
        new = next(numbers)
        metas[new] = metas[target]
        now[before.args[0].index] = new
        ops.append(replace(op, function=_OTHER_VERSIONS[op.function], results=(new,)))
    outputs = [now.get(number, number) for number in trace.outputs]
    return Trace(ops, trace.inputs, outputs, trace.constants, metas), same_strides


def recorded_again(
    trace: Trace,
    inputs: Sequence[Tensor],
    through: Callable[[Callable], Callable] = lambda replay: replay,
) -> Trace:
    """What is recorded of a trace that is run `through` something, such as functionalisation."""
    numbers, constants = list(trace.constants), list(trace.constants.values())
    everything = [tensor.detach() for tensor in (*inputs, *constants)]

    # A constant that f makes for itself may be changed there: torch.tensor([1.0, 2.0])[0] = 3.0.
    fresh = {op.args[0].index for op in trace.ops if op.function is _aten.lift_fresh.default}

    dying = last_reads(trace.ops, {*trace.inputs, *trace.constants, *trace.outputs})

    def replay(*tensors: Tensor) -> list[Tensor]:
        env: dict[int, Tensor] = dict(zip((*trace.inputs, *numbers), tensors, strict=True))
        env.update((number, env[number].clone()) for number in fresh & set(numbers))
        for position, op in enumerate(trace.ops):
            replay_op(op, env)
            for number in dying.get(position, ()):
                del env[number]
        return [env[number] for number in trace.outputs]

    with torch.no_grad(), Tape(everything) as tape:
        outputs = through(replay)(*everything)
    result = tape.trace(outputs)
    known = {id(tensor) for tensor in everything}
    if any(map(_writes, result.ops)):
        raise UntraceableError("it changes a tensor in place that it did not make")
    if any(id(tensor) not in known for tensor in result.constants.values()):
        raise UntraceableError("an in-place operation that cannot be written without")
    own = result.inputs[len(inputs) :]
    result.inputs = result.inputs[: len(inputs)]
    result.constants = dict(zip(own, constants, strict=True))
    return result
