# SPDX-License-Identifier: Apache-2.0
"""Which rows belong to which example, found by a probe.

The direction u is scaled by another number s_n for every example n. A row of g that is linear in
the u of one example is then scaled by its s_n, which names n; a row that is scaled by no such
number depends on several examples. Nothing is guessed from shapes: inside `nn.MultiheadAttention`
time comes first, and experts have the rows that were sent to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Different scales in one probe, powers of two from 1 on: they change no rounding, so that a row of
# one example is scaled exactly in any dtype. An exponent is a digit of the number of an example.
_LEVELS = 8
_TOLERANCE = 1 / 32  # of a scaled row
# Times the smallest number: below, an entry has lost too many digits in a backward pass.
_UNDERFLOW = 64


@dataclass(frozen=True)
class ExampleMap:
    """The rows of every example.

    Args:
        examples: how many there are.
        index: (examples, T), the numbers of the rows of each; -1 for none.
        inner: where rows are in regular order, row r is of the example (r // inner) % examples.
    """

    examples: int
    index: Tensor | None = None
    inner: int | None = None

    def is_of_images(self, shape: Sequence[int]) -> bool:
        """Whether N of a shape (N, channels, places...) counts the examples."""
        return self.inner == math.prod(shape[2:]) and shape[0] == self.examples

    def arrange(self, rows: Tensor) -> Tensor:
        """Rows (R, ...) as (examples, T, ...); zero where an example has fewer."""
        if self.index is None:
            assert self.inner is not None
            split = rows.reshape(-1, self.examples, self.inner, *rows.shape[1:])
            return split.transpose(0, 1).reshape(self.examples, -1, *rows.shape[1:])
        padded = torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])
        return padded[self.index]  # -1 is the last

    def most_rows(self, rows: int) -> int:
        """How many of so many rows an example has at most."""
        return rows // self.examples if self.index is None else self.index.shape[1]

    def owners(self, rows: int, device: torch.device) -> Tensor:
        """The example of each row, shape (rows,); -1 for none."""
        if self.index is None:
            assert self.inner is not None
            return (torch.arange(rows, device=device) // self.inner) % self.examples
        owner = torch.full((rows + 1,), -1, device=self.index.device)
        owner[self.index] = torch.arange(self.examples, device=owner.device)[:, None]
        return owner[:rows]

    def sums(self, rows: Tensor) -> Tensor:
        """(examples, ...): the sum over the rows of each example."""
        arranged = self.arrange(rows)
        return arranged[:, 0] if arranged.shape[1] == 1 else arranged.sum(1)


def num_probes(examples: int) -> int:
    """How many probes tell so many examples apart."""
    count = 1
    while _LEVELS**count < examples:
        count += 1
    return count


def scales(examples: int) -> list[Tensor]:
    """The numbers s_n of each probe, shape (examples,)."""
    code, probes = _codes(examples), range(num_probes(examples))
    return [((code // _LEVELS**k) % _LEVELS).double().exp2() for k in probes]


def read_map(
    plain: Tensor, probed: Sequence[Tensor], examples: int, tolerance: float = _TOLERANCE
) -> ExampleMap | None:
    """The examples of rows (R, ...), from the rows of a probe with each of `scales`.

    None where a row depends on several examples by more than `tolerance`. A row that says nothing,
    since it has underflown, belongs to the example that a regular order gives it.
    """
    rows = plain.flatten(1).double()
    size = (rows * rows).sum(1)
    seen = size > (_UNDERFLOW * _smallest(plain.dtype)) ** 2 * rows.shape[1]
    code = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    for k, scaled in enumerate(probed):
        scaled = scaled.flatten(1).double()
        ratio = (scaled * rows).sum(1) / torch.where(seen, size, 1.0)
        digit = ratio.clamp(min=1.0).log2().round().clamp(max=_LEVELS - 1)
        scale = digit.exp2()
        error = (scaled - scale[:, None] * rows).square().sum(1)
        if not bool((error <= (tolerance * scale) ** 2 * size)[seen].all()):
            return None
        code += _LEVELS**k * digit.long()
    owner = torch.full_like(code, examples)
    known = seen & (code < examples)
    if bool((seen & ~known).any()):
        return None
    owner[known] = torch.argsort(_codes(examples)).to(code.device)[code[known]]
    return _regular(owner, known, examples) or _listed(owner, examples)


def _smallest(dtype: torch.dtype) -> float:
    """The smallest positive number."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def _codes(examples: int) -> Tensor:
    """Numbers of the examples in random order: neighbours get scales that differ much."""
    return torch.randperm(examples, generator=torch.Generator().manual_seed(0))


def _regular(owner: Tensor, known: Tensor, examples: int) -> ExampleMap | None:
    """The regular order that the known rows have, if there is exactly one."""
    R = len(owner)
    if R % examples:
        return None
    row, fitting = torch.arange(R, device=owner.device), []
    for inner in range(1, R // examples + 1):
        if (R // examples) % inner == 0:
            guess = (row // inner) % examples
            if bool((guess == owner)[known].all()):
                fitting.append(inner)
    return ExampleMap(examples, inner=fitting[-1]) if len(fitting) == 1 or examples == 1 else None


def _listed(owner: Tensor, examples: int) -> ExampleMap:
    counts = torch.bincount(owner, minlength=examples + 1)[:examples]
    most = max(1, int(counts.max()))
    order = torch.argsort(owner, stable=True)[: int(counts.sum())]
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(order), device=owner.device) - starts[owner[order]]
    index = torch.full((examples, most), -1, device=owner.device)
    index[owner[order], place] = order
    return ExampleMap(examples, index=index)
