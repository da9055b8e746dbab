# SPDX-License-Identifier: Apache-2.0
"""`Stacked`: the space of two vectors, one above the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from hesse.vectors.space import Space


@dataclass(frozen=True, repr=False)
class Stacked(Space):
    """Pairs of vectors of two spaces, of which processes may share one or both.

    >>> import torch
    >>> space = stacked(Space.flat(1), Space.flat(2))
    >>> space.norm(torch.tensor([1.0, 2.0, 2.0]))
    3.0
    """

    above: Space = field(default_factory=lambda: Space.flat(0))
    below: Space = field(default_factory=lambda: Space.flat(0))

    def norm(self, v: Tensor) -> float:
        """The Euclidean norm of both."""
        rows = self.above.size
        return math.hypot(self.above.norm(v[:rows]), self.below.norm(v[rows:]))

    def all_finite(self, v: Tensor) -> bool:
        """Whether neither has NaN or Inf; both are asked, on all processes."""
        rows = self.above.size
        parts = self.above.all_finite(v[:rows]), self.below.all_finite(v[rows:])
        return all(parts)


def stacked(above: Space, below: Space) -> Space:
    """The space of pairs; a flat one where each process has whole vectors."""
    flat = Space.flat(above.size + below.size, above.dtype, above.device)
    if above.shards is None and below.shards is None:
        return flat
    fields = flat.template, flat.names, flat.shapes, flat.dtypes, flat.dtype, flat.device
    return Stacked(*fields, above=above, below=below)
