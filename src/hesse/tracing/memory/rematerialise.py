# SPDX-License-Identifier: Apache-2.0
"""Compute again instead of keeping: a direction program in less memory.

What works entry by entry (an activation from what went into it) costs little more to compute again
than to read. Two things need not be kept if they can be had in this way:

- residuals. Where to cut between keeping and computing is a minimum cut of the graph of the point
  program, whose edges cost the bytes of the tensor that they carry.
- what the direction program made some time ago and reads again later, while it is at its peak.

Source: Chen et al. 2016, arXiv:1604.06174, for the idea; the minimum cut is that of activation
checkpointing in compilers (Jain et al. 2020, arXiv:1910.02653).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from hesse.tracing.graph import Meta, Op, Trace, renamed
from hesse.tracing.memory.liveness import Lifetimes, is_view, made_by, occupied
from hesse.tracing.memory.min_cut import Network

_aten = torch.ops.aten
_SOURCE, _SINK = "source", "sink"

Cheap = Callable[[Op], bool]

_FACTORIES = frozenset([_aten.zeros.default, _aten.full.default, _aten.scalar_tensor.default])
_COPIES = frozenset([_aten.clone.default, _aten._to_copy.default])
_ARITHMETIC = ["add", "sub", "mul", "div", "neg", "where", "masked_fill", "threshold_backward"]
_ARITHMETIC += ["gt", "ge", "lt", "le", "eq", "ne", "tanh_backward", "sigmoid_backward", "relu"]
_LIGHT = frozenset(getattr(_aten, name) for name in _ARITHMETIC)
_READING = ["max_pool2d_with_indices_backward", "avg_pool2d_backward", "sum", "mean", "cat"]
_READING += ["native_layer_norm", "_softmax", "_safe_softmax", "_log_softmax", "stack", "gather"]
_READING += ["_softmax_backward_data", "_log_softmax_backward_data", "index_select"]
_MEMORY_BOUND = frozenset(getattr(_aten, name) for name in _READING)

# Less than this part of the peak is not worth an operation.
_SMALL = 0.005


def is_light(op: Op) -> bool:
    """Whether it is a view, or simple arithmetic entry by entry."""
    function = op.function
    if op.guard is not None:
        return False
    if is_view(function) or function in _FACTORIES or function in _COPIES:
        return True
    return function.overloadpacket in _LIGHT


def is_memory_bound(op: Op) -> bool:
    """Whether it is light, or takes little longer than reading and writing: exp, softmax, sum."""
    if is_light(op):
        return True
    tagged = torch.Tag.pointwise in op.function.tags
    return op.guard is None and (tagged or op.function.overloadpacket in _MEMORY_BOUND)


def choose_residuals(trace: Trace, still: list[Op], wanted: list[int], cheap: Cheap) -> list[int]:
    """The tensors to keep, of the fewest bytes, so that `wanted` can be computed again cheaply.

    Args:
        trace: where the numbers get their meaning.
        still: operations that do not depend on the direction.
        wanted: what the direction program reads of their results.
        cheap: which operations may be run again.
    """
    made = {number: op for op in still for number in made_by(op)}
    network = Network()
    for number, op in made.items():
        before, after = (number, "made"), (number, "kept")
        # A view keeps nothing but what it is a view of.
        size = math.inf if is_view(op.function) else trace.metas[number].nbytes
        network.add(before, after, size)
        if not cheap(op):
            network.add(_SOURCE, before, math.inf)
        for source in op.reads():
            if source in made:
                network.add((source, "kept"), before, math.inf)
    for number in wanted:
        if number in made:
            network.add((number, "kept"), _SINK, math.inf)
    side = network.minimum_cut(_SOURCE, _SINK)
    return [n for n in made if (n, "made") not in side and (n, "kept") in side]


def lower_peak(
    ops: list[Op],
    metas: dict[int, Meta],
    inputs: Collection[int],
    outputs: Collection[int],
    goal: float,
    cheap: Cheap,
) -> list[Op]:
    """The same program in at most `goal` bytes, or as few as this finds; adds to `metas`."""
    profile = list(occupied(ops, metas, inputs, outputs))
    while profile and (peak := max(profile)) > goal:
        eviction = _Eviction(ops, metas, inputs, outputs, profile.index(peak), cheap)
        trial = eviction.run(_SMALL * peak)
        profile = list(occupied(trial, metas, inputs, outputs))
        if max(profile) >= peak:
            break
        ops = trial
    return ops


class _Eviction:
    """Let go of what is idle while the operation at `position` runs, and compute it again later."""

    def __init__(
        self,
        ops: list[Op],
        metas: dict[int, Meta],
        inputs: Collection[int],
        outputs: Collection[int],
        position: int,
        cheap: Cheap,
    ) -> None:
        self._ops, self._metas, self._position, self._cheap = ops, metas, position, cheap
        self._inputs, self._outputs = set(inputs), outputs
        self._lifetimes = Lifetimes(ops, [*inputs, *outputs])
        self._maker = {number: op for op in ops[:position] for number in made_by(op)}
        self._evicted: set[int] = set()
        self._anew: dict[int, int] = {}
        self._result: list[Op] = []
        self._next = max(metas) + 1
        self._possible: dict[int, bool] = {}

    def run(self, least: float) -> list[Op]:
        """The new program; tensors of fewer bytes than `least` stay."""
        self._evicted = {n for n in self._idle() if self._metas[n].nbytes >= least}
        self._result = self._ops[: self._position + 1]
        for op in self._ops[self._position + 1 :]:
            for number in op.reads():
                self._need(number)
            self._result.append(self._rename(op))
        return self._result

    def _idle(self) -> list[int]:
        """The roots that are read later, not now, and can be had again."""
        lifetimes = self._lifetimes
        busy = {lifetimes.root(n) for n in self._ops[self._position].reads()}
        busy |= {lifetimes.root(n) for n in self._outputs} | self._inputs
        return [
            number
            for number in self._maker
            if lifetimes.root(number) == number
            and number not in busy
            and self._is_there(number)
            and self._can_make(number)
        ]

    def _can_make(self, number: int) -> bool:
        """Whether what it is computed from is there after this position, or can be had."""
        if number not in self._possible:
            op = self._maker[number]
            self._possible[number] = self._cheap(op) and all(
                self._is_there(n) or self._can_make(n) for n in op.reads()
            )
        return self._possible[number]

    def _is_there(self, number: int) -> bool:
        root = self._lifetimes.root(number)
        return root not in self._maker or self._lifetimes.last[root] > self._position

    def _need(self, number: int) -> None:
        """Compute it again if it was let go, or is no more."""
        if number in self._anew or number not in self._maker:
            return
        if self._is_there(number) and self._lifetimes.root(number) not in self._evicted:
            return
        op = self._maker[number]
        for source in op.reads():
            self._need(source)
        again = self._rename(op)
        for result in made_by(op):
            self._anew[result], self._next = self._next, self._next + 1
            self._metas[self._anew[result]] = self._metas[result]
        results = tuple(None if n is None else self._anew[n] for n in op.results)
        self._result.append(replace(again, results=results))

    def _rename(self, op: Op) -> Op:
        return renamed(op, lambda number: self._anew.get(number, number))
