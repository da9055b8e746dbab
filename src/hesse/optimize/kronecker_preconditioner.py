# SPDX-License-Identifier: Apache-2.0
"""K-FAC or EK-FAC as the preconditioner of Hessian-free optimisation, averaged over steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from hesse.ad.examples import Axis
from hesse.curvature.kronecker.blocks import Block
from hesse.curvature.kronecker.estimate import Estimator, Settings
from hesse.curvature.kronecker.operator import KroneckerCurvature
from hesse.curvature.likelihood_sum import seen_at
from hesse.errors import FunctionError, StructureError
from hesse.operators.algebra import LinearOperator
from hesse.operators.batched_kronecker import Factors
from hesse.risk.risk import Risk
from hesse.vectors.space import Space, Tree

Stored = dict[str, dict[str, Tensor]]
"""The tensors of every block, by the names of its parameters."""


class KroneckerPreconditioner:
    """lambda -> an approximation of the inverse of G + lambda I, from one random vector a step.

    Args:
        risk: the model and the loss.
        space: the space of its parameters.
        rotated: EK-FAC; otherwise K-FAC.
        of_closures: the risk is that of closures. They cannot be cut, so that the first dimension
            of what goes into the loss counts the examples; and each may have other data.
    """

    products = 0

    def __init__(
        self, risk: Risk, space: Space, *, rotated: bool = True, of_closures: bool = False
    ) -> None:
        self._space, self._decay = space, risk.weight_decay
        settings = Settings("sampled", samples=1, approximation="expand", rotated=rotated, seed=0)
        self._estimator = Estimator(risk, settings)
        self._of_closures = of_closures
        self.blocks: list[Block] = []
        self._loaded: Stored = {}

    @property
    def state(self) -> tuple[list[Block], Stored]:
        """The present blocks, to be set again after a step that failed."""
        return self.blocks, self._loaded

    @state.setter
    def state(self, state: tuple[list[Block], Stored]) -> None:
        self.blocks, self._loaded = state

    @property
    def traces(self) -> int:
        """How often the model was traced."""
        return self._estimator.programs.traces

    @property
    def is_empty(self) -> bool:
        """Whether there are no factors yet."""
        return not self.blocks and not self._loaded

    def refresh(self, risk: Risk, params: Tree, seed: int, past: float) -> None:
        """Estimate the factors at `params`, averaged with weight `past` on the old."""
        before = self.ready(params)
        self._see_likelihoods(risk, params)
        self._estimator = self._estimator.on(risk, seed, forgets=self._of_closures)
        # The factors are averages, which turn slowly: so do their eigenbases.
        blocks = self._estimator.blocks(params, previous=before, past=before, decay=past)
        self.blocks = list(map(_in_rows, blocks))

    def ready(self, params: Tree) -> list[Block]:
        """The present blocks; those loaded, once it is known where they lie."""
        if self._loaded:
            self._see_likelihoods(self._estimator.risk, params)
            layouts = self._estimator.layouts(params)
            self.blocks = [
                _with_tensors(Block.of(layout, *_factors(tensors)), tensors)
                for layout, tensors in zip(layouts, self._loaded.values(), strict=True)
            ]
            self._loaded = {}
        return self.blocks

    def __call__(self, damping: float) -> LinearOperator:
        """The approximate inverse of G + damping I; where that is singular, of more damping."""
        while True:
            K = KroneckerCurvature(
                self._space, self.blocks, weight_decay=self._decay, damping=damping
            )
            try:
                return K._inverse()
            except StructureError:
                damping *= 10.0

    def _see_likelihoods(self, risk: Risk, params: Tree) -> None:
        if self._of_closures and self._estimator.axes is None:
            with suppress(FunctionError):  # a loss of no likelihood
                likelihoods = seen_at(risk, params, risk.loss_of(risk.data.first)).likelihoods
                self._estimator.axes = tuple(Axis(-each.z.ndim) for each in likelihoods)

    # -- State -------------------------------------------------------------------------------------

    def stored(self) -> Stored:
        """The tensors of the blocks."""
        if self._loaded:
            return self._loaded
        return {f"{k}: {', '.join(b.names)}": _tensors(b) for k, b in enumerate(self.blocks)}

    def load(self, stored: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Use these tensors."""
        self._loaded, self.blocks = {key: dict(part) for key, part in stored.items()}, []


def position(key: str) -> int:
    """The number of a block, from its key."""
    return int(key.partition(": ")[0])


def first_name(key: str) -> str:
    """The first parameter of a block, from its key."""
    return key.partition(": ")[2].partition(", ")[0]


def _tensors(block: Block) -> dict[str, Tensor]:
    tensors = {"left": block.left.entries, "right": block.right.entries}
    if block.d is not None and block.basis is not None:
        P, Q = (side.entries for side in block.basis)
        tensors |= {"P": P, "Q": Q, "d": block.d}
    return tensors


def _factors(tensors: Mapping[str, Tensor]) -> tuple[Factors, Factors]:
    return Factors(tensors["left"]), Factors(tensors["right"])


def _in_rows(block: Block) -> Block:
    """With contiguous tensors, as a file gives them: bits of products depend on the layout."""
    tensors = {name: part.contiguous() for name, part in _tensors(block).items()}
    left, right = _factors(tensors)
    return _with_tensors(replace(block, left=left, right=right), tensors)


def _with_tensors(block: Block, tensors: Mapping[str, Tensor]) -> Block:
    if "d" not in tensors:
        return block
    return replace(block, d=tensors["d"], basis=(Factors(tensors["P"]), Factors(tensors["Q"])))
