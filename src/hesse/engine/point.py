# SPDX-License-Identifier: Apache-2.0
"""`Point`: where a product is taken: a definition, a function, its variables and its data."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from hesse.ad.definition import Definition, Linearisation, Quantity, Vectors
from hesse.ad.determinism import run_deterministic
from hesse.ad.variables import BoundFunction, Leaves, Variables
from hesse.surroundings import users_autocasts
from hesse.vectors.space import Space


@dataclass(frozen=True)
class Point:
    """See the module; `outputs` is the space of the outputs, if directions or results lie there."""

    definition: Definition
    function: BoundFunction
    data: tuple[Tensor, ...]
    outputs: Space | None = None

    @property
    def variables(self) -> Variables:
        """The leaves that vary, with the place where they are."""
        return self.function.variables

    @property
    def inputs(self) -> list[Tensor]:
        """What the primal program computes from."""
        variables = self.variables
        return [*variables.x, *variables.frozen, *self.data]

    def evaluate(self) -> list[Tensor]:
        """The outputs of f, as f itself computes them."""
        return self.definition.evaluate(self.function, self.variables.x)

    def linearise(self, *, again: bool = False) -> Linearisation:
        """f here with its graph; raises for an f that draws random numbers.

        `again`: the same f was linearised elsewhere, when it drew none from generators outside of
        torch.
        """
        made = run_deterministic(
            lambda: self.definition.linearise(self.function, self.variables.x), again=again
        )
        made.check()
        return made

    def split(self, vectors: Vectors, flat: Tensor) -> Leaves:
        """The leaves of a flat direction."""
        return self.variables.split(flat) if vectors == "variables" else self._space.split(flat)

    def join(self, vectors: Vectors, leaves: Leaves) -> Tensor:
        """The entries of a result side by side, without those of frozen leaves."""
        return self.variables.join(leaves) if vectors == "variables" else self._space.join(leaves)

    def random(self, vectors: Vectors, seed: int) -> Tensor:
        """A random direction."""
        space = self.variables.space if vectors == "variables" else self._space
        return space.gaussian(torch.Generator().manual_seed(seed))

    @property
    def _space(self) -> Space:
        assert self.outputs is not None
        return self.outputs

    def apply(self, graph: Linearisation, quantity: Quantity, direction: Tensor) -> Tensor:
        """A quantity by the graph, from a flat direction to a flat result."""
        result = graph.apply(quantity.name, self.split(quantity.direction, direction))
        if isinstance(result, Tensor):
            return result
        return self.join(quantity.result or "variables", result)

    def key(self) -> Hashable:
        """What two points have in common if one program serves both."""
        tensors = self.inputs
        form = tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        return (
            self.definition,
            self.variables.key,
            form,
            torch.get_default_dtype(),
            users_autocasts(),
        )
