# SPDX-License-Identifier: Apache-2.0
"""The factors of all blocks of a model, from sweeps over its batches.

One sweep gives the factors. A second one, with the same vectors u, gives the diagonals in their
eigenbases. Both are sums over batches, and over the processes that share a risk; the vectors of a
single batch are kept in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from torch import Tensor

from hesse.ad.examples import Axis
from hesse.ad.fisher import LikelihoodLoss
from hesse.ad.likelihoods.seen import SeenLikelihoods
from hesse.ad.quadratic import Quadratic
from hesse.ad.summands import Summand
from hesse.ad.variables import BoundFunction, Leaves, Variables, tracked
from hesse.curvature.kronecker.blocks import Block
from hesse.curvature.kronecker.examples import ExampleMap
from hesse.curvature.kronecker.layout import BlockLayout, check_same_layouts
from hesse.curvature.kronecker.moments import KroneckerMoments, RowMoments, ScalarMoments
from hesse.curvature.kronecker.over_ranks import Moments, added_up, known_to_all, moments_of_all
from hesse.curvature.kronecker.probe import probed_maps
from hesse.curvature.kronecker.programs import FactorPoint, FactorPrograms
from hesse.curvature.kronecker.roots import (
    MOST_VECTORS,
    LikelihoodRoots,
    LossRoots,
    exact_count,
    loss_roots,
    vectors,
)
from hesse.curvature.kronecker.seen_batches import SeenBatches
from hesse.curvature.likelihood_sum import seen_at
from hesse.curvature.rows_of_examples import example_axes
from hesse.data.slicing import num_examples
from hesse.errors import DataError, FunctionError
from hesse.operators.batched_kronecker import Factors
from hesse.operators.eigenbasis import refreshed_basis
from hesse.ranks import alike
from hesse.risk.risk import Risk
from hesse.tracing.graph import UntraceableError
from hesse.tracing.uses import Use
from hesse.vectors.space import Space, Tree

Fisher = Literal["exact", "sampled", "empirical"]
Approximation = Literal["expand", "reduce"]

_MIXES = "no rule for rows that depend on several examples"

# Vectors of a single batch are kept up to so many bytes.
_KEPT = 1 << 29


@dataclass(frozen=True)
class Settings:
    """What is estimated, and how.

    Args:
        fisher, samples: see `roots`.
        approximation: "expand" takes rows as they are, "reduce" one for each example.
        rotated: whether the diagonals in the eigenbases are estimated too (EK-FAC).
        seed: of the random signs.
    """

    fisher: Fisher
    samples: int
    approximation: Approximation
    rotated: bool
    seed: int


Kept = list[tuple["_Visit", list]]
"""The batch that is all there is, with its vectors where these were kept."""


@dataclass
class _Visit:
    """A batch at the point, while it is looked at."""

    coefficient: float
    point: FactorPoint
    loss: LossRoots
    examples: int
    seed: int
    maps: dict[Use, ExampleMap | None]


class Estimator:
    """Estimates the blocks of a risk at points; programs are shared by all points.

    Args:
        risk: the model, the loss and the data. Of one that several processes share, all of them
            call each method together.
        settings: what is estimated.

    Attributes:
        risk: the part of it in this process.
    """

    def __init__(self, risk: Risk, settings: Settings) -> None:
        self._given, self.settings = risk, settings
        self.risk, self._ranks = _here(risk), risk.ranks
        self.programs = FactorPrograms()
        self.axes: tuple[Axis, ...] | None = None
        self._unseen = False
        self._seen = SeenBatches(self.programs)
        self.fisher: str = settings.fisher
        self.vectors = 0

    def on(self, risk: Risk, seed: int, *, forgets: bool = False) -> Estimator:
        """The same on other data, with other random signs; programs are shared.

        On the same risk its likelihoods are too, unless it `forgets` them, and runs the model. Call
        `see_likelihoods` before.
        """
        other = Estimator.__new__(Estimator)  # copy.copy would go by __reduce__, and trace again
        vars(other).update(vars(self), settings=replace(self.settings, seed=seed))
        if risk is not self._given or forgets:
            other._given, other.risk = risk, _here(risk)
            other._seen = SeenBatches(self.programs)
        return other

    def layouts(self, params: Tree) -> list[BlockLayout]:
        """The blocks that the parameters form, without their factors."""
        params, layouts = self._given.share.whole(params), list[BlockLayout]()
        with alike(self._ranks), traceable():
            self.see_likelihoods(params)
            for visit in self._visits(_variables(params)):
                layouts = visit.point.program.blocks
                break
        return self._known_to_all(layouts)

    def blocks(
        self,
        params: Tree,
        previous: Sequence[Block] = (),
        *,
        past: Sequence[Block] = (),
        decay: float = 0.0,
    ) -> list[Block]:
        """The blocks at `params`.

        Args:
            params: the point.
            previous: those of a point nearby, whose eigenbases are refreshed instead of computed.
            past, decay: blocks with whose factors those found are averaged, and their weight.

        Raises:
            FunctionError: the model cannot be traced.
        """
        params = self._given.share.whole(params)
        with alike(self._ranks), traceable():
            self.see_likelihoods(params)
            variables = _variables(params)
            layouts, moments, kept = self._swept(variables)
        layouts = self._known_to_all(layouts)
        if self._ranks is not None:
            like = variables.space.zeros()
            new = partial(self._moments, space=variables.space)
            moments = moments_of_all(self._ranks, layouts, moments, new, like)
        blocks = [
            Block.of(layout, *part.factors()) for layout, part in zip(layouts, moments, strict=True)
        ]
        if past:
            pairs = zip(blocks, past, strict=True)
            blocks = [block.averaged(before, decay) for block, before in pairs]
        if not self.settings.rotated:
            return blocks
        return self._rotated(variables, blocks, moments, kept, previous)

    def _swept(self, variables: Variables) -> tuple[list[BlockLayout], list[Moments], Kept]:
        """The blocks and their moments, of the batches here; and what is kept of a single one."""
        layouts, moments, kept = list[BlockLayout](), list[Moments](), Kept()
        for visit in self._visits(variables):
            found = visit.point.program.blocks
            layouts = layouts or found
            check_same_layouts(layouts, found)
            moments = moments or [self._moments(block, variables.space) for block in found]
            for part, block in zip(moments, found, strict=True):
                part.begin(block, visit.point.a, visit.maps)
            gs = []
            for weight, g in self._tangents(visit):
                for part in moments:
                    part.add(g, weight * visit.coefficient)
                gs.append((weight, g))
                if not self._keeps(gs):
                    gs.clear()
            for part in moments:
                part.end()
            if self.risk.num_summands == 1:
                kept.append((visit, gs if len(gs) == self.vectors else []))
        return layouts, moments, kept

    def _known_to_all(self, layouts: list[BlockLayout]) -> list[BlockLayout]:
        """The blocks, also where there are no data, and what else a process learns from these."""
        if self._ranks is None:
            return layouts
        here = layouts, self.fisher, self.vectors, self.axes
        found = known_to_all(self._ranks, bool(layouts), here)
        layouts, self.fisher, self.vectors, self.axes = found
        return layouts

    @property
    def about(self) -> str:
        """What was estimated, in a line."""
        matrix = "Fisher" if self.axes is not None else "Gauss-Newton"
        if self.fisher == "exact":
            count = f"all {self.vectors} vectors"
        else:
            count = f"{self.vectors} vector{'s' if self.vectors > 1 else ''} of random signs"
        if self.fisher != self.settings.fisher:
            count += f" (the exact one takes more than {MOST_VECTORS})"
        return f"{self.fisher} {matrix}, {count}; {self.settings.approximation}"

    def __reduce__(self) -> tuple:
        return Estimator, (self._given, self.settings)

    def _keeps(self, gs: list) -> bool:
        if not self.settings.rotated or self.risk.num_summands > 1:
            return False
        return sum(t.nbytes for _, g in gs for t in g.values()) <= _KEPT

    def _rotated(
        self,
        variables: Variables,
        blocks: list[Block],
        moments: list[Moments],
        kept: Kept,
        previous: Sequence[Block],
    ) -> list[Block]:
        """The blocks with their diagonals in eigenbases."""
        bases: dict[int, tuple[Factors, Factors]] = {}
        for k, (block, part) in enumerate(zip(blocks, moments, strict=True)):
            if isinstance(part, KroneckerMoments):
                before = previous[k].basis if previous else None
                P, Q = (None, None) if before is None else before
                bases[k] = _basis(block.left, P), _basis(block.right, Q)
                part.use_basis(*bases[k])
        with alike(self._ranks):
            self._project(variables, moments, kept)
        rotated = [part for part in moments if isinstance(part, KroneckerMoments)]
        if self._ranks is not None and rotated:
            sums = added_up(self._ranks, [part.d for part in rotated], variables.space.zeros())
            for part, whole in zip(rotated, sums, strict=True):
                part.d = whole
        return [
            block.with_diagonal(bases[k], part.d) if isinstance(part, KroneckerMoments) else block
            for k, (block, part) in enumerate(zip(blocks, moments, strict=True))
        ]

    def _project(self, variables: Variables, moments: list[Moments], kept: Kept) -> None:
        """A second sweep, for the diagonals in the bases."""
        visits = [visit for visit, _ in kept] or self._visits(variables)
        for i, visit in enumerate(visits):
            gs = kept[i][1] if kept and kept[i][1] else self._tangents(visit)
            found = visit.point.program.blocks
            for part, block in zip(moments, found, strict=True):
                part.begin(block, visit.point.a, visit.maps)
            for weight, g in gs:
                for part in moments:
                    if isinstance(part, KroneckerMoments):
                        part.project(g, weight * visit.coefficient)

    def _moments(self, block: BlockLayout, space: Space) -> Moments:
        if block.kind == "kronecker":
            reduce = self.settings.approximation == "reduce"
            return KroneckerMoments(block, reduce, space.dtype)
        if block.kind == "rows":
            return RowMoments(block, space.dtype)
        return ScalarMoments(block, space.zeros())

    # -- Batches -----------------------------------------------------------------------------------

    def _visits(self, variables: Variables) -> Iterator[_Visit]:
        for number, summand in enumerate(self.risk.summands()):
            if isinstance(summand.function, Quadratic):
                continue
            examples = num_examples(summand.function.batch)
            if examples is None:
                raise DataError(
                    expected="inputs whose first dimensions agree, and count the examples",
                    got="inputs whose first dimensions differ",
                    remedy="Give batches of examples along the first dimension of every input.",
                )
            yield self._enter(number, summand, variables, examples)

    def _enter(self, number: int, summand: Summand, variables: Variables, examples: int) -> _Visit:
        f = BoundFunction(LikelihoodLoss(summand.function, self.risk.loss_name), variables)
        single = examples == 1 and self.risk.num_summands == 1
        again = self._seen.enter(number, f, summand, single_example=single)
        point, loss = again or self._first(number, f, summand, single)
        if isinstance(loss, SeenLikelihoods):
            assert self.axes is not None
            loss = LikelihoodRoots(loss, self.axes)
        maps = self._example_maps(point, loss, examples)
        self._choose_vectors(loss, examples)
        seed = (self.settings.seed + self.risk.share.first + number) % 2**63
        return _Visit(summand.coefficient, point, loss, examples, seed, maps)

    def _first(
        self, number: int, f: BoundFunction, summand: Summand, single: bool
    ) -> tuple[FactorPoint, LossRoots | SeenLikelihoods]:
        """A batch by a forward pass of the model, with which the program is compared."""
        loss, data = loss_roots(f, tracked(f.variables.x), self.axes), summand.data
        z, key = loss.z, summand.key
        point = self.programs.enter(f, data, key, z, self._outputs, single_example=single)
        if not isinstance(loss, LikelihoodRoots):
            return point, loss
        self._seen.remember(number, data, loss.loss)
        return point, loss.loss.at(point.outputs)  # as without a forward pass: the same bits

    def _choose_vectors(self, loss: LossRoots, examples: int) -> None:
        count = exact_count(loss, examples)
        if self.fisher == "exact" and count > MOST_VECTORS:
            self.fisher = "sampled"
        self.vectors = count if self.fisher == "exact" else self.settings.samples

    def _tangents(self, visit: _Visit) -> Iterator[tuple[float, dict[int, Tensor]]]:
        for weight, u in vectors(
            visit.loss, self.fisher, visit.examples, self.settings.samples, visit.seed
        ):
            yield weight, visit.point.tangent(u)

    def _outputs(self, f: BoundFunction, leaves: Leaves) -> list[Tensor]:
        return loss_roots(f, leaves, self.axes).z

    def see_likelihoods(self, params: Tree) -> None:
        """Find the examples in the likelihoods of the loss, if that is made of likelihoods."""
        if self.axes is not None or self._unseen or not self.risk.data.count:
            return
        try:
            seen_at(self.risk, params, self.risk.loss_of(self.risk.data.first))
        except FunctionError:
            if self.settings.fisher == "empirical":
                raise
            self._unseen = True
            return
        self.axes = example_axes(self.risk, params, needed=True)

    # -- Examples ----------------------------------------------------------------------------------

    def _needs_map(self, block: BlockLayout) -> bool:
        per_example = self.settings.rotated or self.settings.approximation == "reduce"
        return block.kind == "rows" or (block.kind == "kronecker" and per_example)

    def _example_maps(
        self, point: FactorPoint, loss: LossRoots, examples: int
    ) -> dict[Use, ExampleMap | None]:
        """The examples of the rows of all uses that need them; blocks that mix them get no rule."""
        program = point.program
        wanted = [u for b in program.blocks if self._needs_map(b) for u in b.uses]
        if program.sorts_rows or any(use not in program.maps for use in wanted):
            program.maps.update(probed_maps(point, loss, examples, wanted))
            mixing = {use for use in wanted if program.maps[use] is None}
            if mixing:
                changed = []
                for block in program.blocks:
                    mixes = bool(mixing & set(block.uses))
                    changed += block.without_rule(_MIXES) if mixes else [block]
                self.programs.change(point, program.with_blocks(changed))
        return point.program.maps


@contextmanager
def traceable() -> Iterator[None]:
    """Within it, a model that cannot be traced is a `FunctionError`."""
    try:
        yield
    except UntraceableError as error:
        raise FunctionError(
            expected="a model whose backward pass can be traced, since factors are read off it",
            got=str(error),
            remedy="Use operations of torch on dense tensors in the place of that one, as "
            "nn.Embedding(..., sparse=False); hesse.ggn_operator needs no trace.",
        ) from error


def _here(risk: Risk) -> Risk:
    """The part of a risk in this process."""
    return risk if risk.ranks is None else risk.local


def _variables(params: Tree) -> Variables:
    space = Space.of(params)
    return Variables.of(params, space)


def _basis(side: Factors, previous: Factors | None) -> Factors:
    """Orthonormal eigenvectors, or nearly those from the ones of a point nearby."""
    if side.is_diagonal or previous is None or previous.is_diagonal:
        return side.eigen()[1]
    return Factors(refreshed_basis(side.entries, previous.entries))
