# SPDX-License-Identifier: Apache-2.0
r"""A curvature with structural damping: it also resists changes of the hidden states of a model.

The risk is taken with another term for each module of hidden states h,

$$ R(\theta) + \frac{w}{2 N} \sum_n \lVert h_n(\theta) - \bar h_n \rVert^2, \qquad
   \bar h_n = h_n(\theta) \text{ as a constant}, $$

which is zero at every point, and so is its gradient. Its matrix is not: J_h' J_h w / N. Since h is
one more output of the model, a product with the sum costs no more passes than one with the risk's.

Source: Martens & Sutskever 2011 (ICML, "Learning recurrent neural networks with Hessian-free
optimization"), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hesse.ad.summands import Summand
from hesse.data.batches import Batch
from hesse.data.slicing import num_examples
from hesse.engine.program_cache import ProgramCache
from hesse.result import OneLine
from hesse.risk.call import BatchLoss
from hesse.risk.hidden_states import HiddenStates
from hesse.risk.risk import Risk
from hesse.vectors.space import Tree


class StructuralRisk(OneLine):
    """A risk whose curvature matrices have structural damping; value and gradient are the risk's.

    Args:
        risk: a mean, or a sum, over examples; the damping is the same.
        states: the hidden states.
        weights: w, a vector with an entry for each module.
        programs: of products; risks that differ in weights and data share them.
    """

    def __init__(
        self, risk: Risk, states: HiddenStates, weights: Tensor, programs: ProgramCache
    ) -> None:
        self._risk, self._states, self._weights = risk, states, weights
        self.programs = programs
        programs.limit = max(programs.limit, risk.num_summands)
        # w / N by N: the same tensor in every sweep, since products look whether data have changed
        self._scaled: dict[float, Tensor] = {}

    def __repr__(self) -> str:
        return f"{self._risk!r} with structural damping"

    @property
    def num_summands(self) -> int:
        """The number of batches."""
        return self._risk.num_summands

    @property
    def holds_data(self) -> bool:
        """As of the risk."""
        return self._risk.holds_data

    def summands(self) -> Iterator[Summand]:
        """Those of the risk; the batches with the terms of their hidden states."""
        for summand in self._risk.summands():
            loss = summand.function
            if not isinstance(loss, BatchLoss):  # the weight decay
                yield summand
                continue
            weights = self._weights_of(loss.batch)
            yield replace(
                summand,
                function=_StructuralLoss(loss, self._states, weights),
                data=(weights, *summand.data),
                key=("structural damping", summand.key),
            )

    def _weights_of(self, batch: Batch) -> Tensor:
        """w / N, or w where the loss adds up; N is the weight where examples cannot be counted."""
        count = float(num_examples(batch) or batch.weight) if self._risk.averages else 1.0
        return self._scaled.setdefault(count, self._weights / count)


@dataclass(frozen=True)
class _StructuralLoss:
    """The loss of a batch, and the terms of its hidden states."""

    loss_of: BatchLoss
    states: HiddenStates
    weights: Tensor

    knows_its_leaves = True  # the risk has been tested

    def __call__(self, params: Tree) -> Tensor:
        with self.states.read() as hidden:
            value = self.loss_of(params)
        return self._with_terms(value, hidden)

    def outputs(self, params: Tree) -> Any:
        """The outputs of the model, and the hidden states of each module."""
        with self.states.read() as hidden:
            outputs = self.loss_of.outputs(params)
        return outputs, hidden

    def loss(self, outputs: Any) -> Tensor:
        """The loss, and the terms, as a function of outputs and hidden states."""
        outputs, hidden = outputs
        return self._with_terms(self.loss_of.loss(outputs), hidden)

    def _with_terms(self, value: Tensor, hidden: list[list[Tensor]]) -> Tensor:
        """The loss of the risk, and a term that is zero for each hidden state."""
        for weight, states in zip(self.weights.unbind(), hidden, strict=True):
            for h in states:
                change = h - h.detach()
                value = value + (0.5 * weight.to(h) * change.square()).sum().to(value)
        return value
