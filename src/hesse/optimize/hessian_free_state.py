# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint of `HessianFree` holds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hesse.data.batches import flatten_batch
from hesse.errors import Status
from hesse.optimize.point import Counts
from hesse.risk.risk import Risk


@dataclass
class HessianFreeState:
    """Everything that the next step depends on, apart from the arguments and the data."""

    x: Tensor
    """The parameters, flat."""
    cg_start: Tensor | None
    factors: list[list[Any]]
    """Of each block: its key, then the names of its tensors and these."""
    counts: Counts
    status: Status
    lr: float
    damping: float
    steps: int
    mode: str


@dataclass
class Products:
    """The number of products taken."""

    products: int


def shapes_of(risk: Risk) -> Hashable:
    """The forms of the batches of a risk, each of which has programs of its own."""
    forms = set()
    for _, batch in risk.batches():
        data, key = flatten_batch(batch)
        forms.add((key, tuple((t.shape, t.stride(), t.dtype) for t in data)))
    return frozenset(forms)
