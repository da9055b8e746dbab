# SPDX-License-Identifier: Apache-2.0
"""The CTC loss, composed of operations that can be differentiated twice.

With the extended target l' (blanks before, between and after the labels) the forward recursion is

    a_t(s) = log(exp a_(t-1)(s) + exp a_(t-1)(s - 1) + exp a_(t-1)(s - 2)) + log p_t(l'_s),

the last term of the sum only where l'_s is no blank and not l'_(s-2) (Graves et al. 2006). torch
has the first derivative only, and that for log p of probabilities that sum to one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

# The logarithm of a probability of 0, finite: infinities have no derivatives.
_NONE = -1e30
_REDUCTIONS = ("none", "mean", "sum")


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """`torch.nn.functional.ctc_loss`, and `torch.ctc_loss` with a number for the reduction."""
    if isinstance(reduction, int):
        reduction = _REDUCTIONS[reduction]
    batched = log_probs.ndim == 3
    log_p = log_probs if batched else log_probs.unsqueeze(1)
    frames, labels = (
        torch.as_tensor(lengths, device=log_p.device).reshape(-1).long()
        for lengths in (input_lengths, target_lengths)
    )
    n = log_p.shape[1] if log_p.ndim == 3 else 0
    if not len(frames) == len(labels) == n > 0 or bool((frames > len(log_p)).any()):
        return torch.nn.functional.ctc_loss(  # which tells what is wrong
            log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity
        )
    losses = _losses(log_p, _padded(targets, labels, batched), frames, labels, blank)
    impossible = losses > -0.1 * _NONE
    losses = losses.masked_fill(impossible, 0.0 if zero_infinity else torch.inf)
    if reduction == "mean":
        return (losses / labels.clamp(min=1).to(losses.dtype)).mean()
    if reduction == "sum":
        return losses.sum()
    return losses if batched else losses.squeeze(0)


def _padded(targets: Tensor, labels: Tensor, batched: bool) -> Tensor:
    """The targets as a matrix, a row for each element of the batch."""
    targets = targets.long()
    if targets.ndim == 2 or not batched:
        return targets.reshape(len(labels), -1)
    width = int(labels.max())
    at = (labels.cumsum(0) - labels).unsqueeze(-1) + torch.arange(width, device=labels.device)
    return targets[at.clamp(max=max(len(targets) - 1, 0))] if len(targets) else at


def _losses(log_p: Tensor, targets: Tensor, frames: Tensor, labels: Tensor, blank: int) -> Tensor:
    """-log of the probability of each target: log_p (T, N, C), targets (N, S)."""
    n, width = targets.shape
    size = 2 * width + 1
    known = torch.arange(width, device=targets.device) < labels.unsqueeze(-1)
    targets = torch.where(known, targets, blank)  # what lies beyond may be anything
    pairs = torch.stack([torch.full_like(targets, blank), targets], 2).reshape(n, -1)
    extended = pad(pairs, (0, 1), value=blank)
    jump = (extended != blank) & (extended != pad(extended, (2, 0), value=blank)[:, :size])
    emitted = log_p.clamp(min=_NONE).gather(2, extended.expand(len(log_p), n, size))
    start = torch.arange(size, device=targets.device) < 2
    alpha = emitted[0].masked_fill(~start, _NONE)
    for t in range(1, len(log_p)):
        one = pad(alpha, (1, 0), value=_NONE)[:, :size]
        two = pad(alpha, (2, 0), value=_NONE)[:, :size]
        arrivals = torch.stack([alpha, one, two.masked_fill(~jump, _NONE)])
        moved = (torch.logsumexp(arrivals, 0) + emitted[t]).clamp(min=_NONE)
        alpha = torch.where((t < frames).unsqueeze(-1), moved, alpha)
    last = (2 * labels).unsqueeze(-1)
    ends = torch.cat([last, (last - 1).clamp(min=0)], 1)
    finals = alpha.gather(1, ends)
    without = torch.stack([torch.zeros_like(labels), (labels == 0).long()], 1).bool()
    losses = -torch.logsumexp(finals.masked_fill(without, _NONE), 1)
    return torch.where(frames > 0, losses, -_NONE * labels.clamp(max=1).to(losses.dtype))
