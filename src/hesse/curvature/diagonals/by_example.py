# SPDX-License-Identifier: Apache-2.0
"""Squared gradients by one backward pass for every example and vector, whatever the model does.

For parameters whose last operation has no rule, and for models that cannot be traced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.ad.double_backward import derivative, differentiating
from hesse.ad.variables import BoundFunction, Variables, tracked
from hesse.curvature.diagonals.readers import Reader
from hesse.curvature.diagonals.vectors import Vectors, Weighted
from hesse.data.slicing import slice_batch
from hesse.engine.closeness import agree
from hesse.errors import DataError

_CHUNK = 1 << 24  # entries of vectors at a time


def add_squares(
    total: Tensor,
    chosen: Sequence[int],
    reader: Reader,
    f: BoundFunction,
    batch: Any,
    vectors: Vectors,
    take: Callable[[], Iterable[Weighted]],
    coefficient: float,
) -> None:
    """Add the sum over vectors and examples of the squares to the entries of some leaves.

    Args:
        total: the diagonal, a flat vector of all leaves; changed.
        chosen: the numbers of the leaves.
        reader: see there.
        f: the loss of the batch.
        batch: the batch.
        vectors: those at its outputs.
        take: gives them, the same every time.
        coefficient: of the batch.
    """
    variables, examples = f.variables, vectors.examples
    parts = slice_batch(batch, range(examples + 1), lambda *_: 1.0)
    starts = [0, *torch.tensor(variables.sizes).cumsum(0).tolist()]
    entries = [total[starts[k] : starts[k + 1]] for k in chosen]
    size = max(1, sum(z.numel() for z in vectors.z) // examples)
    step = max(1, _CHUNK // (size * max(1, vectors.count)))
    for first in range(0, examples, step):
        numbers = range(first, min(first + step, examples))
        own = [(w, [vectors.of_example(u, n) for n in numbers]) for w, u in take()]
        for i, n in enumerate(numbers):
            z, leaves = _outputs(reader, f, parts[n], variables)
            _check_same(z, vectors.of_example(vectors.z, n))
            leaves = [leaves[k] for k in _varying(variables, chosen)]
            for w, us in own:
                u = [_shaped(part, like) for part, like in zip(us[i], z, strict=True)]
                with differentiating():  # what runs again must take the same kernels
                    gradients = derivative(z, leaves, u, retain_graph=True)
                for entry, gradient in zip(entries, gradients, strict=True):
                    row = gradient.reshape(-1).to(total.dtype)
                    entry.addcmul_(row, row, value=w * coefficient)


def _outputs(
    reader: Reader, f: BoundFunction, part: Any, variables: Variables
) -> tuple[list[Tensor], list[Tensor]]:
    one = BoundFunction(reader.on(f.function, part), variables)
    leaves = tracked(variables.x)
    return reader.outputs(reader.loss(one, leaves)), leaves


def _varying(variables: Variables, chosen: Sequence[int]) -> list[int]:
    """The numbers of the chosen leaves among those that vary."""
    return [sum(cold is None for cold in variables.constants[:k]) for k in chosen]


def _check_same(alone: Sequence[Tensor], within: Sequence[Tensor]) -> None:
    """Raise unless an example has the same outputs alone as within its batch."""
    sizes = [part.numel() for part in alone] == [part.numel() for part in within]
    pairs = list(zip(alone, within, strict=True)) if len(alone) == len(within) else []
    ours = [part.detach() for part, _ in pairs]
    if sizes and agree(ours, [_shaped(other.detach(), part) for part, other in pairs], 0.0):
        return
    raise DataError(
        expected="examples that do not influence one another, since parameters without a rule are "
        "taken example by example",
        got="other outputs for an example alone than in its batch",
        remedy="Use method='hutchinson', which takes any model.",
    )


def _shaped(part: Tensor, like: Tensor) -> Tensor:
    return part.reshape(like.shape)
