# SPDX-License-Identifier: Apache-2.0
"""Programs one after the other, as one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hesse.tracing.graph import Graph, eliminate_dead_code, new_numbers, rename
from hesse.tracing.passes.scalar_factors import fold_scalar_factors
from hesse.tracing.passes.simplify import simplify
from hesse.tracing.program import Program


def composed(first: Program, num_kept: int, after: Sequence[Program]) -> Program:
    """inputs of `first` -> its first outputs, and those of all programs `after` it.

    Args:
        first: its first outputs are kept, and its others are the inputs of each of `after`.
        num_kept: how many are kept.
        after: these programs.
    """
    between = first.outputs[num_kept:]
    nodes, constants, metas = list(first.nodes), dict(first.constants), dict(first.metas)
    outputs, fresh = first.outputs[:num_kept], new_numbers(first.metas)
    for program in after:
        names = dict(zip(program.inputs, between, strict=True))
        made = [number for node in program.nodes for number in node.makes()]
        names |= {number: next(fresh) for number in [*program.constants, *made]}
        metas |= {new: program.metas[old] for old, new in names.items() if old in program.metas}
        constants |= {names[number]: tensor for number, tensor in program.constants.items()}
        for node in program.nodes:
            results = tuple(None if n is None else names[n] for n in node.results)
            nodes.append(replace(rename(node, names.__getitem__), results=results))
        outputs += [names[number] for number in program.outputs]
    graph = simplify(Graph(nodes, first.inputs, outputs, constants, metas))
    nodes = fold_scalar_factors(graph.nodes, graph.outputs, graph.metas)
    nodes = eliminate_dead_code(nodes, graph.outputs)
    graph = simplify(replace(graph, nodes=nodes))  # factors apart, more is the same
    measured = first.measured_kernels
    return Program(graph, graph.nodes, graph.inputs, graph.outputs, measured_kernels=measured)
