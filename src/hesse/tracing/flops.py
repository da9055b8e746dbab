# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a node, counted by the formulas of torch."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry

from hesse.tracing.graph import Node, TensorMeta, Value


def flops(node: Node, metas: dict[int, TensorMeta]) -> int:
    """Those of a matrix product, a convolution or attention; 0 for everything else."""
    count = flop_registry.get(node.function.overloadpacket)
    if count is None:
        return 0

    def shape(argument: Any) -> Any:
        return metas[argument.index].shape if isinstance(argument, Value) else argument

    shapes = [None if n is None else metas[n].shape for n in node.results]
    args = [shape(argument) for argument in node.args]
    kwargs = {key: shape(argument) for key, argument in node.kwargs.items()}
    return count(*args, **kwargs, out_val=shapes[0] if node.single else shapes)
