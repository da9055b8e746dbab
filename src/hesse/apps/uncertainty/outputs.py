# SPDX-License-Identifier: Apache-2.0
"""The outputs of a model, linearised in the chosen parameters: f and the rows of its Jacobian J."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import twice_differentiable
from hesse.ad.jacobian import JacobianGraph
from hesse.ad.variables import Leaves, Variables, tracked
from hesse.apps.uncertainty.chosen import Chosen
from hesse.apps.uncertainty.observations import one_likelihood
from hesse.curvature.rank_sum import look_once
from hesse.data.batches import Batch
from hesse.data.slicing import num_examples, slice_batch
from hesse.errors import DataError, FunctionError, kind_of
from hesse.risk.risk import Risk
from hesse.vectors.rows import stacked
from hesse.vectors.space import Tree
from hesse.vectors.trees import walk

# Bytes for the rows of J of some examples, and for what a block of systems takes.
_BYTES = 1 << 28
_VECTORS = 10  # of a system
_MOST_ROWS = 64  # of J at a time
_EXAMPLES = 1024  # whose outputs are taken at a time, where no rows are


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model at params as a function of inputs."""

    risk: Risk
    """With the data of this process alone."""
    chosen: Chosen
    leaf: int
    """Which tensor of the outputs the loss sees."""
    class_dim: int
    """Its dimension of the classes, where it has some."""

    @staticmethod
    def of(risk: Risk, chosen: Chosen) -> Outputs:
        """What the loss sees of the outputs, found on the first batch."""
        seen = look_once(risk, lambda here: _what_is_seen(here, chosen.params))
        return Outputs(risk.local, chosen, *seen)

    def at(self, batch: Batch, params: Tree | None = None) -> Tensor:
        """f, (q, ...), without a graph."""
        params = self.chosen.params if params is None else params
        return self._picked(self.risk.outputs(params, batch), batch).detach()

    def batches(self, x: Any) -> Iterator[Batch]:
        """Inputs, some thousand examples at a time."""
        return self._cut(x, lambda _: _EXAMPLES)

    def small_batches(self, x: Any) -> Iterator[Batch]:
        """Inputs, so many examples at a time that a block of systems for the rows of J fits."""
        row = len(self.chosen.index) * self.chosen.whole.dtype.itemsize

        def count(D: int) -> int:
            return min(_MOST_ROWS // D, _BYTES // (_VECTORS * D * row))

        return self._cut(x, count)

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """f, (q, ...), and J, (q, D, s), for an example with D outputs."""
        variables, leaves, z = self._graph(batch)
        units = torch.eye(z.numel(), dtype=z.dtype, device=z.device).view(-1, *z.shape)
        parts = _pulled(z, leaves, units)
        J = stacked(len(units), (variables.flatten(list(p)) for p in zip(*parts, strict=True)))
        J = self.chosen.take(J)
        return z.detach(), J.view(len(z), -1, J.shape[1])

    def pushed(self, batch: Batch, X: Tensor) -> tuple[Tensor, Tensor]:
        """f, (q, ...), and J X, (k, q, ...), for directions X (s, k)."""
        variables, leaves, z = self._graph(batch)
        graph = JacobianGraph([z], leaves)
        columns = (self.chosen.embed(x.contiguous()) for x in X.T)
        pushed = [graph.push_forward(variables.split(v))[0] for v in columns]
        return z.detach(), torch.stack(pushed)

    def _graph(self, batch: Batch) -> tuple[Variables, list[Tensor], Tensor]:
        space = self.chosen.whole
        variables = Variables.of(space.copy(self.chosen.params), space)
        with twice_differentiable():
            leaves = tracked(variables.x)
            z = self._picked(self.risk.outputs(variables.tree(leaves), batch), batch)
        return variables, leaves, z

    def _picked(self, outputs: Any, batch: Batch) -> Tensor:
        z = _leaves(outputs)[self.leaf]
        count = num_examples(batch)
        if z.ndim == 0 or (count is not None and len(z) != count):
            raise DataError(
                expected="outputs whose first dimension counts the examples",
                got=f"outputs {tuple(z.shape)} of {count} examples",
                remedy="Let the model keep the batch dimension.",
            )
        return z

    def _cut(self, x: Any, count: Any) -> Iterator[Batch]:
        batch = Batch(x, None, 1.0).to(self.chosen.whole.device)
        size = num_examples(batch)
        if size is None:
            raise DataError(
                expected="inputs as the model takes them: a tensor, a tuple or a mapping, whose "
                "first dimensions count the examples",
                got=f"{kind_of(x)} without such tensors",
                remedy="Give the inputs alone, without targets.",
            )
        if size == 0:
            raise DataError(
                expected="at least one example",
                got="none",
                remedy="Give inputs that are not empty.",
            )
        first = slice_batch(batch, [0, 1, size] if size > 1 else [0, 1], _one)[0]
        D = self.at(first).numel()
        step = max(1, min(size, count(D)))
        bounds = [*range(0, size, step), size]
        for low, high in pairwise(bounds):
            yield slice_batch(batch, [0, low, high, size], _one)[1]


def _what_is_seen(risk: Risk, params: Tree) -> tuple[int, int]:
    """Which tensor of the outputs the loss sees, and its dimension of the classes."""
    batch = risk.data.first
    z = one_likelihood(risk, params, batch).z
    leaves = _leaves(risk.outputs(params, batch.to(z.device)))
    for k, leaf in enumerate(leaves):
        if leaf.numel() == z.numel() and torch.equal(leaf.to(z).reshape(z.shape), z):
            return k, 1 if leaf.shape == z.shape or leaf.ndim < 2 else leaf.ndim - 1
    raise FunctionError(
        expected="a loss of the outputs of the model as they are, for predictions",
        got="a loss that sees something else",
        remedy="Let the model return the logits, or the means, that its loss is given.",
    )


def _one(*_: Any) -> float:
    return 1.0


def _leaves(outputs: Any) -> list[Tensor]:
    return [leaf for _, leaf in walk(outputs, "the outputs") if leaf.is_floating_point()]


def _pulled(z: Tensor, leaves: Leaves, units: Tensor) -> list[Tensor]:
    """J' u for each unit u, one block a leaf; vectorised where torch can."""
    try:
        parts = torch.autograd.grad(
            z, list(leaves), units, retain_graph=True, is_grads_batched=True, allow_unused=True
        )
    except RuntimeError:
        graph = JacobianGraph([z], list(leaves))
        rows = [graph.pull_back([u]) for u in units]
        return [torch.stack(leaf) for leaf in zip(*rows, strict=True)]
    pairs = zip(parts, leaves, strict=True)
    return [
        leaf.new_zeros(len(units), *leaf.shape) if part is None else part for part, leaf in pairs
    ]
