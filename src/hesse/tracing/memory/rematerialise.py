# SPDX-License-Identifier: Apache-2.0
"""Recompute values instead of keeping them: a tangent program in less memory.

A pointwise operation costs little more to run again than its result costs to read. Two kinds of
values need not be kept if they can be recomputed by such operations:

- residuals. What to keep and what to recompute is a minimum cut of the graph of the primal program,
  whose edges cost the bytes of the tensors that they carry.
- what the tangent program has made and reads again later, while its memory is at the peak.

The same operations run on the same arguments, so that the results are the same to the last bit.

Source: Chen et al. 2016, arXiv:1604.06174, for the idea; the minimum cut is that of activation
checkpointing in compilers (Jain et al. 2020, arXiv:1910.02653).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from hesse.tracing.graph import Graph, Node, TensorMeta, new_numbers, rename
from hesse.tracing.memory.liveness import Lifetimes, memory_profile
from hesse.tracing.memory.min_cut import Network
from hesse.tracing.operations import is_pointwise, is_view

_aten = torch.ops.aten
_SOURCE, _SINK = "source", "sink"

IsCheap = Callable[[Node], bool]
"""Whether a node may run again."""

_FACTORIES = frozenset([_aten.zeros.default, _aten.full.default, _aten.scalar_tensor.default])
_COPIES = frozenset([_aten.clone.default, _aten._to_copy.default])
_ARITHMETIC = ["add", "sub", "mul", "div", "neg", "where", "masked_fill", "threshold_backward"]
_ARITHMETIC += ["gt", "ge", "lt", "le", "eq", "ne", "tanh_backward", "sigmoid_backward", "relu"]
_LIGHT = frozenset(getattr(_aten, name) for name in _ARITHMETIC)
_READING = ["max_pool2d_with_indices_backward", "avg_pool2d_backward", "sum", "mean", "cat"]
_READING += ["native_layer_norm", "_softmax", "_safe_softmax", "_log_softmax", "stack", "gather"]
_READING += ["_softmax_backward_data", "_log_softmax_backward_data", "index_select"]
_MEMORY_BOUND = frozenset(getattr(_aten, name) for name in _READING)

# A tensor of a smaller fraction of the peak is not worth a recomputation.
_MIN_FRACTION = 0.005


def is_light(node: Node) -> bool:
    """Whether it is a view, a copy, or simple pointwise arithmetic."""
    function = node.function
    if node.guard is not None:
        return False
    if is_view(function) or function in _FACTORIES or function in _COPIES:
        return True
    return function.overloadpacket in _LIGHT


def is_memory_bound(node: Node) -> bool:
    """Whether it is light, or takes little longer than reading and writing: exp, softmax, sum."""
    if is_light(node):
        return True
    is_reading = node.function.overloadpacket in _MEMORY_BOUND
    return node.guard is None and (is_pointwise(node.function) or is_reading)


def choose_residuals(
    graph: Graph, primal_nodes: list[Node], needed: list[int], is_cheap: IsCheap
) -> list[int]:
    """The values to keep, of the fewest bytes, from which cheap nodes recompute the others.

    Args:
        graph: has the metas.
        primal_nodes: the nodes that do not depend on the direction.
        needed: the values of theirs that the tangent program reads.
        is_cheap: which nodes may run again.
    """
    maker = {number: node for node in primal_nodes for number in node.makes()}
    network = Network()
    for number, node in maker.items():
        before, after = (number, "made"), (number, "kept")
        # To keep a view is to keep its root, which has an edge of its own.
        size = math.inf if is_view(node.function) else graph.metas[number].nbytes
        network.add(before, after, size)
        if not is_cheap(node):
            network.add(_SOURCE, before, math.inf)
        for source in node.reads():
            if source in maker:
                network.add((source, "kept"), before, math.inf)
    for number in needed:
        if number in maker:
            network.add((number, "kept"), _SINK, math.inf)
    side = network.minimum_cut(_SOURCE, _SINK)
    return [n for n in maker if (n, "made") not in side and (n, "kept") in side]


def lower_peak(
    nodes: list[Node],
    metas: dict[int, TensorMeta],
    inputs: Collection[int],
    outputs: Collection[int],
    goal: float,
    is_cheap: IsCheap,
    *,
    measured_kernels: bool = True,
) -> list[Node]:
    """The same program within `goal` bytes, or as few as this finds; adds to `metas`."""

    def profile_of(nodes: list[Node]) -> list[int]:
        profile = memory_profile(nodes, metas, inputs, outputs, measured_kernels=measured_kernels)
        return list(profile)

    profile = profile_of(nodes)
    while profile and (peak := max(profile)) > goal:
        eviction = _Eviction(nodes, metas, inputs, outputs, profile.index(peak), is_cheap)
        trial = eviction.run(_MIN_FRACTION * peak)
        profile = profile_of(trial)
        if max(profile) >= peak:
            break
        nodes = trial
    return nodes


class _Eviction:
    """Frees what is idle while the node at `position` runs, and recomputes it later."""

    def __init__(
        self,
        nodes: list[Node],
        metas: dict[int, TensorMeta],
        inputs: Collection[int],
        outputs: Collection[int],
        position: int,
        is_cheap: IsCheap,
    ) -> None:
        self._nodes, self._metas, self._position = nodes, metas, position
        self._inputs, self._outputs, self._is_cheap = set(inputs), outputs, is_cheap
        self._lifetimes = Lifetimes(nodes, [*inputs, *outputs])
        self._maker = {number: node for node in nodes[:position] for number in node.makes()}
        self._evicted: set[int] = set()
        self._recomputed: dict[int, int] = {}
        self._result: list[Node] = []
        self._numbers = new_numbers(metas)
        self._computable: dict[int, bool] = {}

    def run(self, min_bytes: float) -> list[Node]:
        """The new program; tensors of fewer bytes than `min_bytes` stay."""
        self._evicted = {n for n in self._idle() if self._metas[n].nbytes >= min_bytes}
        self._result = self._nodes[: self._position + 1]
        for node in self._nodes[self._position + 1 :]:
            for number in node.reads():
                self._require(number)
            self._result.append(self._renamed(node))
        return self._result

    def _idle(self) -> list[int]:
        """The roots that are read later but not now, and can be recomputed."""
        lifetimes = self._lifetimes
        busy = {lifetimes.root(n) for n in self._nodes[self._position].reads()}
        busy |= {lifetimes.root(n) for n in self._outputs} | self._inputs
        return [
            number
            for number in self._maker
            if lifetimes.root(number) == number
            and number not in busy
            and self._is_live(number)
            and self._can_recompute(number)
        ]

    def _can_recompute(self, number: int) -> bool:
        """Whether its arguments are live after this position, or can be recomputed."""
        if number not in self._computable:
            node = self._maker[number]
            self._computable[number] = self._is_cheap(node) and all(
                self._is_live(n) or self._can_recompute(n) for n in node.reads()
            )
        return self._computable[number]

    def _is_live(self, number: int) -> bool:
        root = self._lifetimes.root(number)
        return root not in self._maker or self._lifetimes.last[root] > self._position

    def _require(self, number: int) -> None:
        """Recompute a value if it was evicted, or is not live."""
        if number in self._recomputed or number not in self._maker:
            return
        if self._is_live(number) and self._lifetimes.root(number) not in self._evicted:
            return
        node = self._maker[number]
        for source in node.reads():
            self._require(source)
        again = self._renamed(node)
        for made in node.makes():
            self._recomputed[made] = next(self._numbers)
            self._metas[self._recomputed[made]] = self._metas[made]
        results = tuple(None if n is None else self._recomputed[n] for n in node.results)
        self._result.append(replace(again, results=results))

    def _renamed(self, node: Node) -> Node:
        return rename(node, lambda number: self._recomputed.get(number, number))
