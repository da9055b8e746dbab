# SPDX-License-Identifier: Apache-2.0
"""`lds`: how well influences predict what retraining on parts of the data does."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import ArgumentError, NonFiniteError, ShapeError
from hesse.estimators.estimate import Estimate, RunningMean, quantile_of


@public("hesse.apps.lds(scores, subsets, outcomes)")
def lds(scores: Tensor, subsets: Tensor, outcomes: Tensor) -> Estimate:
    r"""The linear datamodelling score: do summed influences rank models of half the data?

    $$ \mathrm{LDS} = \tfrac1Q \sum_q \rho_S \Bigl( \sum_{i \notin S_s} I_{qi},\; m_q(\theta_{S_s})
       \Bigr)_s $$

    with rho_S the rank correlation of Spearman over the subsets S_s, and theta_S the parameters
    trained on S. 1 is perfect, 0 is chance. Its ceiling is not 1: retrain with another seed, and
    take the correlation of the outcomes of both.

    Args:
        scores: I, shape (Q, N), with the sign of `influence`: positive where removal raises m. Of
            methods with the other sign, such as those that score a margin, give -scores.
        subsets: shape (M, N), true for the examples that model s was trained on; usually random
            halves.
        outcomes: m_q(theta_S), shape (M, Q): what the queries were after retraining.

    Returns:
        Estimate(value, standard_error, products=0). The error is over queries; that of the subsets
        comes to it, about 1 / sqrt(M) for one query. A query whose scores are all alike counts 0.

    Raises:
        HesseError: shapes that do not fit; subsets that are no mask; fewer than three; an outcome
            that is not finite, or that no subset changes.

    References: Park et al. 2023, arXiv:2303.14186.

    >>> scores = torch.tensor([[3.0, 2.0, 1.0]])
    >>> subsets = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])
    >>> lds(scores, subsets, torch.tensor([[0.1], [0.2], [0.7]])).value      # the first helps most
    1.0
    """
    _check(scores, subsets, outcomes)
    predicted = (~subsets).to(scores) @ scores.T
    mean = RunningMean()
    for a, b in zip(predicted.T, outcomes.T, strict=True):
        mean.add(_correlation(_ranks(a), _ranks(b)))
    error = mean.standard_error if mean.count > 1 else float("inf")
    return Estimate(mean.mean, error, 0, quantile=quantile_of(mean.count))


def _ranks(values: Tensor) -> Tensor:
    """Ranks, the mean one for equal values.

    >>> _ranks(torch.tensor([2.0, 1.0, 2.0]))
    tensor([1.5000, 0.0000, 1.5000], dtype=torch.float64)
    """
    ordered = values.sort().values
    low, high = (
        torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True)
    )
    return (low + high - 1).double() / 2


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(a.square().sum() * b.square().sum()) ** 0.5
    return float((a * b).sum()) / size if size > 0.0 else 0.0


def _check(scores: Tensor, subsets: Tensor, outcomes: Tensor) -> None:
    tensors = {"scores": scores, "subsets": subsets, "outcomes": outcomes}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.ndim != 2:
            raise ShapeError(
                expected=f"{name} to be a matrix",
                got=f"shape {tuple(tensor.shape)}"
                if isinstance(tensor, Tensor)
                else type(tensor).__name__,
                remedy="Give scores (Q, N), subsets (M, N) and outcomes (M, Q).",
            )
    (Q, N), (M, _) = scores.shape, subsets.shape
    if subsets.shape[1] != N or outcomes.shape != (M, Q):
        raise ShapeError(
            expected=f"subsets (M, {N}) and outcomes (M, {Q}) for scores ({Q}, {N})",
            got=f"{tuple(subsets.shape)} and {tuple(outcomes.shape)}",
            remedy="A row of each for every model that was trained again.",
        )
    if subsets.dtype is not torch.bool:
        raise ArgumentError(
            expected="subsets as a mask of booleans, true for what a model was trained on",
            got=str(subsets.dtype),
            remedy="Give subsets.bool(), or subsets > 0.",
        )
    if M < 3:
        raise ArgumentError(
            expected="three subsets at least", got=str(M), remedy="Some fifty tell methods apart."
        )
    if not bool(torch.isfinite(scores).all() & torch.isfinite(outcomes).all()):
        raise NonFiniteError(
            expected="finite scores and outcomes",
            got="NaN or Inf",
            remedy="Leave out the models that diverged.",
        )
    same = (outcomes == outcomes[:1]).all(0)
    if bool(same.any()):
        raise ArgumentError(
            expected="outcomes that change with the subset",
            got=f"the same one for all subsets, of query {int(same.nonzero()[0])}",
            remedy="Leave out this query, or give its loss in the place of its class.",
        )
