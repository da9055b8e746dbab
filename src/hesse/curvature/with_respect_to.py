# SPDX-License-Identifier: Apache-2.0
"""Which variables a curvature matrix is of: some leaves of x, or the inputs of a model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hesse.ad.definition import Vectors
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand, as_sum
from hesse.curvature.described import described
from hesse.data.batches import Batch, flatten_batch
from hesse.engine.row_layout import RowLayout
from hesse.ranks import Ranks, alike
from hesse.result import OneLine
from hesse.risk.call import device_of
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree


def restrict(
    f: Any, x: Tree, name: str | Collection[str]
) -> tuple[Any, Tree, Mapping[Vectors, RowLayout]]:
    """(f, x, layouts) of the function of the named variables alone, the others held fixed."""
    if name == "inputs" and isinstance(f, Risk):
        f.check_at(x)
        of_inputs = InputsOf(f.with_unseen_batches(), x)
        spaces = [Space.of(batch.inputs, what="inputs") for _, batch in of_inputs.batches()]
        return of_inputs, x, {"variables": RowLayout.of(spaces)}
    ranks: Ranks | None = getattr(f, "ranks", None)
    with alike(ranks):
        space = Space.of(x, ranks=ranks)
        x = space.copy(x)  # f may write to it
        part, _ = space.subspace(name)
        leaves = dict(zip(space.names, space.leaves(x, what="x"), strict=True))
        chosen = part.build([leaves[leaf] for leaf in part.names])
    return LeavesOf(f, space.whole_tree(x), part.names), chosen, {}


@dataclass(frozen=True, repr=False)
class InputsOf(OneLine):
    """A risk as a function of the inputs of its model, with the parameters held fixed."""

    risk: Risk
    params: Tree

    def __repr__(self) -> str:
        return f"{self.risk!r} in its inputs"

    @property
    def num_summands(self) -> int:
        """The number of batches."""
        return self.risk.num_summands

    @property
    def holds_data(self) -> bool:
        """As of the risk."""
        return self.risk.holds_data

    def batches(self) -> Iterator[tuple[float, Batch]]:
        """(c_b, batch) on the device of the parameters."""
        for coefficient, batch in self.risk.batches():
            yield coefficient, batch.to(device_of(self.params))

    def summands(self) -> Iterator[Summand]:
        """One for each batch, a function of its inputs."""
        space = Space.of(self.params)
        params = space.leaves(self.params, what="params")
        for coefficient, batch in self.batches():
            targets, key = flatten_batch(replace(batch, inputs=()))
            function = InputLoss(self.risk, self.params, batch) if coefficient else _zero
            key = ("inputs", key, coefficient > 0.0)
            yield Summand(coefficient, function, (*params, *targets), key, x=batch.inputs)


def _zero(inputs: Tree) -> Tensor:
    """The loss of a batch of which it sees nothing, which torch gives as 0 / 0."""
    return torch.stack([(0.0 * part).sum() for part in Space.of(inputs).leaves(inputs)]).sum()


@dataclass(frozen=True)
class InputLoss:
    """The loss of a batch as a function of the inputs of the model."""

    risk: Risk
    params: Tree
    batch: Batch

    knows_its_leaves = True  # the parameters are constants

    def __call__(self, inputs: Tree) -> Tensor:
        batch = replace(self.batch, inputs=inputs)
        return self.risk.loss_of_batch(self.params, batch)


@dataclass(frozen=True, repr=False)
class LeavesOf(OneLine):
    """A function of some leaves of x, with the others held fixed."""

    f: Any
    x: Tree
    names: tuple[str, ...]

    def __repr__(self) -> str:
        more = f" and {len(self.names) - 3} more" if len(self.names) > 3 else ""
        return f"{described(self.f)} in {', '.join(self.names[:3])}{more}"

    @property
    def num_summands(self) -> int:
        """As of f."""
        return as_sum(self.f).num_summands

    @property
    def ranks(self) -> Ranks | None:
        """As of f."""
        return getattr(self.f, "ranks", None)

    @property
    def model(self) -> Any:
        """As of f."""
        return getattr(self.f, "model", None)

    @property
    def local(self) -> LeavesOf:
        """The part of this process."""
        return replace(self, f=self.f.local)

    @property
    def holds_data(self) -> bool:
        """As of f."""
        return as_sum(self.f).holds_data

    def summands(self) -> Iterator[Summand]:
        """Those of f."""
        space = Space.of(self.x)
        leaves = dict(zip(space.names, space.leaves(self.x, what="x"), strict=True))
        fixed = {name: leaf.detach() for name, leaf in leaves.items() if name not in self.names}
        for summand in as_sum(self.f).summands():
            if isinstance(summand.function, Quadratic):
                yield replace(summand, function=replace(summand.function, fixed=fixed))
                continue
            key = None if summand.key is None else ("leaves", self.names, summand.key)
            yield replace(
                summand,
                function=_WithFixed(summand.function, space, self.names, fixed),
                data=(*fixed.values(), *summand.data),
                key=key,
            )


@dataclass(frozen=True)
class _WithFixed:
    function: Any
    space: Space
    names: tuple[str, ...]
    fixed: dict[str, Tensor]

    @property
    def knows_its_leaves(self) -> bool:
        return getattr(self.function, "knows_its_leaves", False)

    def __call__(self, part: Tree) -> Tensor:
        given = Space.of(part).leaves(part)
        leaves = self.fixed | dict(zip(self.names, given, strict=True))
        return self.function(self.space.build([leaves[name] for name in self.space.names]))
