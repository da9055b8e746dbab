# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a recorded operation, counted as torch counts them."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry

from hesse.tracing.graph import Meta, Op, Ref


def flops(op: Op, metas: dict[int, Meta]) -> int:
    """Those of a matrix product or a convolution; of anything else none are counted."""
    count = flop_registry.get(op.function.overloadpacket)
    if count is None:
        return 0

    def shape(argument: Any) -> Any:
        return metas[argument.index].shape if isinstance(argument, Ref) else argument

    shapes = [None if n is None else metas[n].shape for n in op.results]
    args = [shape(argument) for argument in op.args]
    kwargs = {key: shape(argument) for key, argument in op.kwargs.items()}
    return count(*args, **kwargs, out_val=shapes[0] if op.single else shapes)
