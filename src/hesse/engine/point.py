# SPDX-License-Identifier: Apache-2.0
"""`Point`: where a product is taken: a definition, a function, its variables and its data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.ad.definition import Definition, Vectors
from hesse.ad.variables import BoundFunction, Variables
from hesse.surroundings import recorded_contexts
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Point:
    """See the module; `outputs` is the space of the outputs, if directions or results lie there."""

    definition: Definition
    function: BoundFunction
    variables: Variables
    data: tuple[Tensor, ...]
    outputs: Space | None = None

    @property
    def inputs(self) -> list[Tensor]:
        """What the primal program computes from."""
        return [*self.variables.x, *self.variables.frozen, *self.data]

    def evaluate(self) -> list[Tensor]:
        """The outputs of f, as f itself computes them."""
        return self.definition.evaluate(self.function, self.variables.x)

    def random(self, vectors: Vectors, seed: int) -> Tensor:
        """A random direction."""
        space = self.variables.space if vectors == "variables" else self.outputs
        assert space is not None
        return space.gaussian(torch.Generator().manual_seed(seed))

    def key(self) -> Hashable:
        """What two points have in common if one program serves both."""
        tensors = self.inputs
        form = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        return (
            self.definition,
            self.variables.key,
            form,
            recorded_contexts(),
        )
