# SPDX-License-Identifier: Apache-2.0
r"""Categorical distributions: cross-entropy of logits, and the likelihood of log-probabilities.

For logits, p = softmax(z) and the Fisher matrix of a row is diag(p) - p p' = S S' with
S = diag(sqrt p) - p sqrt(p)'. Its last column is not needed: S Q is a root, too, where Q are the
columns of the reflection that takes sqrt(p) to the last unit vector, without the last one. With
t = sqrt(p_C), column j of S Q is sqrt(p_j) (e_j - (p_1, ..., p_{C-1}, t + p_C) / (1 + t)).

For log-probabilities, p = exp(z) and the Fisher matrix of a row is diag(p).

The weight of a row is that of its Hessian: with class weights w, smoothing e and target y,

$$ W_i = (1-e)\, w_{y_i} + \frac{e}{C} \sum_c w_c $$

or zero for an ignored target. A mean divides by the sum of the w of the targets, without the
smoothing. For targets that are probabilities q, W_i is the sum of w over q with its smoothing, and
a mean divides by the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.likelihoods.likelihood import Likelihood, Tensors, wide


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Rows of logits along the dimension of the classes."""

    is_singular = True

    @property
    def row_dim(self) -> int:
        return class_dim(self.z) - self.z.ndim

    @property
    def noise_shape(self) -> torch.Size:
        shape = list(self.z.shape)
        shape[self.row_dim] = 1
        return torch.Size(shape)

    @property
    def p(self) -> Tensor:
        """The probabilities of the classes."""
        return self.z.softmax(self.row_dim)

    def product(self, u: Tensors) -> list[Tensor]:
        p, v = self.p, wide(u[0])
        return [self.omega * p * (v - (p * v).sum(self.row_dim, keepdim=True))]

    def root(self, e: Tensors) -> list[Tensor]:
        p, s = self.p, self.p.sqrt() * wide(e[0])
        return [self.omega.sqrt() * (s - p * s.sum(self.row_dim, keepdim=True))]

    def root_adjoint(self, u: Tensors) -> list[Tensor]:
        p, v = self.p, wide(u[0])
        return [self.omega.sqrt() * p.sqrt() * (v - (p * v).sum(self.row_dim, keepdim=True))]

    def short_root(self, e: Tensors) -> list[Tensor]:
        p, dim = self.p, self.row_dim
        s = (p.sqrt() * wide(e[0])).narrow(dim, 0, p.shape[dim] - 1)
        total = s.sum(dim, keepdim=True)
        first, last = p.split([p.shape[dim] - 1, 1], dim)
        last = last.sqrt()
        parts = s - first / (1.0 + last) * total, -last * total
        return [self.omega.sqrt() * torch.cat(parts, dim)]

    def draw(self, uniform: Tensor) -> Tensor:
        """The class in whose part of [0, 1] the number lies; shaped as `noise_shape`."""
        below = self.p.cumsum(self.row_dim) <= uniform
        y = below.sum(self.row_dim, keepdim=True)
        return y.clamp(max=self.z.shape[self.row_dim] - 1)  # the sum may round to less than one

    def slope(self, y: Tensor) -> list[Tensor]:
        return [self.omega.sqrt() * (self.p - _one_hot(y, self.z, self.row_dim))]


@dataclass(frozen=True)
class LogProbabilities(Categorical):
    """Rows of log-probabilities: the likelihood is linear in them, and its Hessian zero."""

    is_natural = False
    is_singular = False

    @property
    def p(self) -> Tensor:
        return self.z.exp()

    def product(self, u: Tensors) -> list[Tensor]:
        return [self.omega * self.p * wide(u[0])]

    def root(self, e: Tensors) -> list[Tensor]:
        return [(self.omega * self.p).sqrt() * wide(e[0])]

    def root_adjoint(self, u: Tensors) -> list[Tensor]:
        return self.root(u)  # of a diagonal S

    def short_root(self, e: Tensors) -> list[Tensor]:
        return self.root(e)

    def slope(self, y: Tensor) -> list[Tensor]:
        return [-self.omega.sqrt() * _one_hot(y, self.z, self.row_dim)]


def cross_entropy(a: Mapping[str, Any], c: Tensor) -> Categorical:
    """The rows of `F.cross_entropy`, from its arguments and the slope c of L in its value."""
    return _categorical(Categorical, a, c, a["label_smoothing"])


def nll_loss(a: Mapping[str, Any], c: Tensor) -> LogProbabilities:
    """The rows of `F.nll_loss`."""
    return _categorical(LogProbabilities, a, c, 0.0)


def _categorical(kind: Any, a: Mapping[str, Any], c: Tensor, smoothing: float) -> Any:
    z, target = a["input"], a["target"].detach()
    dim = class_dim(z)
    classes = z.shape[dim]
    like = wide(z)
    w = like.new_ones(classes) if a["weight"] is None else wide(a["weight"])
    if target.is_floating_point():
        q = (1 - smoothing) * wide(target).movedim(dim, -1) + smoothing / classes
        weights = q @ w
        counts = torch.ones_like(weights)
    else:
        kept = target != a["ignore_index"]
        chosen = w[torch.where(kept, target, 0)]
        counts = torch.where(kept, chosen, 0.0)
        smoothed = (1 - smoothing) * chosen + smoothing / classes * w.sum()
        weights = torch.where(kept, smoothed, 0.0)
    omega = over_total(weights, counts) if a["reduction"] == "mean" else weights
    counts = c if a["reduction"] == "none" else counts
    return kind((z,), (omega * c).unsqueeze(dim), counts.unsqueeze(dim))


def class_dim(z: Tensor) -> int:
    """The dimension of the classes: the second one, or the only one."""
    return 1 if z.ndim > 1 else 0


def over_total(weights: Tensor, counts: Tensor) -> Tensor:
    """weights / sum(counts): zero where nothing counts, as when every target is ignored."""
    total = counts.sum()
    return weights / torch.where(total == 0, torch.ones_like(total), total)


def _one_hot(y: Tensor, p: Tensor, dim: int) -> Tensor:
    """Ones at the classes y, along a dimension of p."""
    shape = [1] * p.ndim
    shape[dim] = p.shape[dim]
    return (y == torch.arange(p.shape[dim], device=p.device).view(shape)).to(p.dtype)
