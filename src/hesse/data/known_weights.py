# SPDX-License-Identifier: Apache-2.0
r"""What torch's own losses average over: the weight of a batch, read off its targets.

$$ w_b = \sum_{i \in b,\; y_i \ne \text{ignore\_index}} w_{y_i} \qquad \text{(cross entropy)} $$

and the number of elements for losses that average over all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ENTROPIES = (nn.CrossEntropyLoss, nn.NLLLoss)
_ENTROPY_FUNCTIONS = (F.cross_entropy, F.nll_loss)
# Means over all elements, where the targets are shaped like the outputs.
_ELEMENTWISE = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.PoissonNLLLoss,
    nn.SoftMarginLoss,
)
_ELEMENTWISE_FUNCTIONS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.poisson_nll_loss,
    F.soft_margin_loss,
)


def known_weight(loss: Any) -> Callable[[Any, Any, float], float] | None:
    """(inputs, targets, number of examples) -> the weight of a batch; None for an unknown loss.

    >>> weigh = known_weight(nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0])))
    >>> weigh(None, torch.tensor([0, 1, 1, -100]), 4)
    4.5
    """
    function, options = _function_and_options(loss)
    if type(loss) in _ENTROPIES:
        return _EntropyWeight(loss.ignore_index, loss.weight)
    if function in _ENTROPY_FUNCTIONS and options.keys() <= {
        "weight", "ignore_index", "label_smoothing", "reduction",
    }:  # fmt: skip
        return _EntropyWeight(options.get("ignore_index", -100), options.get("weight"))
    if type(loss) is nn.KLDivLoss:
        return _examples if loss.reduction == "batchmean" else _elements
    if type(loss) in _ELEMENTWISE:
        return _elements
    if function in _ELEMENTWISE_FUNCTIONS and options.keys() <= {"reduction", "beta", "delta"}:
        return _elements
    return None


def reduction_option(loss: Any) -> str:
    """The reduction that a loss says it has, "mean" if it says nothing."""
    return getattr(loss, "reduction", None) or _function_and_options(loss)[1].get(
        "reduction", "mean"
    )


def _function_and_options(loss: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(loss, functools.partial) and not loss.args:
        return loss.func, loss.keywords
    return loss, {}


@dataclass(frozen=True)
class _EntropyWeight:
    """The sum of the class weights of the targets that are not ignored."""

    ignored: int
    weights: Tensor | None

    reads_targets = True

    def __call__(self, inputs: Any, targets: Any, examples: float) -> float:
        if not isinstance(targets, Tensor):
            return examples
        if targets.dtype.is_floating_point:  # probabilities: a mean over positions
            classes = targets.shape[1 if targets.ndim > 1 else 0]
            return targets.numel() / max(1, classes)
        counted = targets != self.ignored
        if self.weights is None:
            return float(counted.sum())
        chosen = targets[counted].long()
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self.weights):
            return examples  # the loss itself says what is wrong
        return float(self.weights.detach().to(targets.device)[chosen].sum(dtype=torch.float64))


def _elements(inputs: Any, targets: Any, examples: float) -> float:
    """The number of elements of the targets, if they have a row for every example."""
    per_example = isinstance(targets, Tensor) and targets.ndim > 0 and targets.shape[0] == examples
    return float(targets.numel()) if per_example else examples


def _examples(inputs: Any, targets: Any, examples: float) -> float:
    return examples
