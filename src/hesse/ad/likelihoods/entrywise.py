# SPDX-License-Identifier: Apache-2.0
r"""Likelihoods of independent entries: Gaussian, Bernoulli, Poisson.

| loss | distribution of an entry | Fisher | slope |
|---|---|---|---|
| `mse_loss` | Gaussian, mean z, variance 1/2 | 2 | 2 (z - y) |
| `binary_cross_entropy_with_logits` | Bernoulli, p = sigmoid(z) | p (1 - p) | p - y |
| `binary_cross_entropy` | Bernoulli, p = z | 1 / (p (1 - p)) | (p - y) / (p (1 - p)) |
| `poisson_nll_loss(log_input=True)` | Poisson, rate exp(z) | exp(z) | exp(z) - y |
| `poisson_nll_loss(log_input=False)` | Poisson, rate z | z / (z + eps)^2 | 1 - y / (z + eps) |
| `gaussian_nll_loss` | Gaussian, mean z, variance v | 1 / v and 1 / (2 v^2) | (z - y) / v and (v - (z - y)^2) / (2 v^2) |

A row is the last dimension of z, the entries of one example or place; of a vector it is each entry.
"""  # noqa: E501

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hesse.ad.likelihoods.categorical import over_total
from hesse.ad.likelihoods.likelihood import Likelihood, Tensors, wide


@dataclass(frozen=True)
class Entrywise(Likelihood):
    """Independent entries; `information` is their Fisher matrix, which is diagonal."""

    @property
    def row_dim(self) -> int | None:
        return -1 if self.z.ndim > 1 else None

    @property
    def noise_shape(self) -> torch.Size:
        return self.z.shape

    @property
    @abstractmethod
    def information(self) -> Tensor:
        """F, shaped like z."""

    @abstractmethod
    def entry_slope(self, y: Tensor) -> Tensor:
        """-d log p(y | z) / dz of every entry."""

    def product(self, u: Tensors) -> list[Tensor]:
        return [self.omega * self.information * wide(u[0])]

    def root(self, e: Tensors) -> list[Tensor]:
        return [(self.omega * self.information).sqrt() * wide(e[0])]

    def slope(self, y: Tensor) -> list[Tensor]:
        return [self.omega.sqrt() * self.entry_slope(y)]


@dataclass(frozen=True)
class SquaredError(Entrywise):
    """y ~ N(z, 1/2), whose negative log-density is (z - y)^2."""

    @property
    def information(self) -> Tensor:
        return torch.full_like(self.z, 2.0)

    def draw(self, uniform: Tensor) -> Tensor:
        return self.z + 0.5**0.5 * normal(uniform)

    def entry_slope(self, y: Tensor) -> Tensor:
        return 2.0 * (self.z - y)


@dataclass(frozen=True)
class BernoulliLogits(Entrywise):
    """y ~ Bernoulli(sigmoid(z))."""

    @property
    def information(self) -> Tensor:
        return torch.sigmoid(self.z) * torch.sigmoid(-self.z)

    def draw(self, uniform: Tensor) -> Tensor:
        return (uniform < torch.sigmoid(self.z)).to(self.z.dtype)

    def entry_slope(self, y: Tensor) -> Tensor:
        return torch.sigmoid(self.z) - y


@dataclass(frozen=True)
class Bernoulli(Entrywise):
    """y ~ Bernoulli(z). torch bounds log z from below by -100, and z (1 - z) by 1e-12."""

    is_natural = False

    @property
    def _variance(self) -> Tensor:
        return (self.z * (1.0 - self.z)).clamp(min=1e-12)

    @property
    def information(self) -> Tensor:
        return 1.0 / self._variance

    def draw(self, uniform: Tensor) -> Tensor:
        return (uniform < self.z).to(self.z.dtype)

    def entry_slope(self, y: Tensor) -> Tensor:
        return (self.z - y) / self._variance


@dataclass(frozen=True)
class PoissonLogRate(Entrywise):
    """y ~ Poisson(exp(z))."""

    @property
    def information(self) -> Tensor:
        return self.z.exp()

    def draw(self, uniform: Tensor) -> Tensor:
        return poisson(uniform, self.z.exp())

    def entry_slope(self, y: Tensor) -> Tensor:
        return self.z.exp() - y


@dataclass(frozen=True)
class PoissonRate(Entrywise):
    """y ~ Poisson(z), with torch's eps in the logarithm."""

    eps: float = 1e-8
    is_natural = False

    @property
    def information(self) -> Tensor:
        return self.z.clamp(min=0.0) / (self.z + self.eps) ** 2

    def draw(self, uniform: Tensor) -> Tensor:
        return poisson(uniform, self.z.clamp(min=0.0))

    def entry_slope(self, y: Tensor) -> Tensor:
        return 1.0 - y / (self.z + self.eps)


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """y ~ N(z, v); one entry of v may serve several of z."""

    target: Tensor
    eps: float
    is_natural = False

    @property
    def v(self) -> Tensor:
        """The variance, broadcastable to z."""
        v = wide(self.parameters[1])
        v = v.unsqueeze(-1) if v.ndim < self.z.ndim else v
        return v.clamp(min=self.eps)

    @property
    def row_dim(self) -> int | None:
        return -1 if self.z.ndim > 1 else None

    @property
    def noise_shape(self) -> torch.Size:
        return self.z.shape

    @property
    def _information(self) -> tuple[Tensor, Tensor]:
        of_variance = self._like_variance(self.omega / (2.0 * self.v**2))
        return self.omega / self.v, of_variance

    def product(self, u: Tensors) -> list[Tensor]:
        return [F * wide(part) for F, part in zip(self._information, u, strict=True)]

    def root(self, e: Tensors) -> list[Tensor]:
        return [F.sqrt() * wide(part) for F, part in zip(self._information, e, strict=True)]

    def draw(self, uniform: Tensor) -> Tensor:
        return self.z + self.v.sqrt() * normal(uniform)

    def slope(self, y: Tensor) -> list[Tensor]:
        error, root = self.z - y, self.omega.sqrt()
        of_variance = root * (self.v - error**2) / (2.0 * self.v**2)
        return [root * error / self.v, self._like_variance(of_variance)]

    def observed(self, slope: Tensors) -> list[Tensor]:
        return self.slope(wide(self.target))

    def row_inner(self, r: Tensors, u: Tensors) -> Tensor:
        return super().row_inner(self._expanded(r), self._expanded(u))

    def row_multiples(self, r: Tensors, t: Tensor) -> list[Tensor]:
        of_mean, of_variance = super().row_multiples(self._expanded(r), t)
        return [of_mean, of_variance.squeeze(-1) if self._lacks_a_dimension else of_variance]

    @property
    def _lacks_a_dimension(self) -> bool:
        return self.parameters[1].ndim < self.z.ndim

    def _expanded(self, parts: Tensors) -> list[Tensor]:
        """Parts shaped like the parameters, the second with the last dimension of the first."""
        of_mean, of_variance = parts
        return [of_mean, of_variance.unsqueeze(-1) if self._lacks_a_dimension else of_variance]

    def _like_variance(self, entries: Tensor) -> Tensor:
        """The sum over the entries that share a variance."""
        sizes = zip(range(-self.z.ndim, 0), self.z.shape, self.v.shape, strict=True)
        shared = [dim for dim, n, m in sizes if n != m]
        total = entries.sum(shared, keepdim=True) if shared else entries
        return total.squeeze(-1) if self._lacks_a_dimension else total


# -- From the arguments of the losses --------------------------------------------------------------


def mse_loss(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.mse_loss`."""
    return SquaredError(
        (a["input"],), *weights_of_entries(a, c, weight=a.get("weight"), weighted_mean=True)
    )


def binary_cross_entropy_with_logits(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.binary_cross_entropy_with_logits`: w (pos_weight y + 1 - y) stands outside."""
    y = wide(a["target"])
    factor = 1.0 if a["pos_weight"] is None else 1.0 + (wide(a["pos_weight"]) - 1.0) * y
    return BernoulliLogits(
        (a["input"],), *weights_of_entries(a, c, weight=a["weight"], factor=factor)
    )


def binary_cross_entropy(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.binary_cross_entropy`."""
    return Bernoulli((a["input"],), *weights_of_entries(a, c, weight=a["weight"]))


def poisson_nll_loss(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.poisson_nll_loss`."""
    weights = weights_of_entries(a, c)
    if a["log_input"]:
        return PoissonLogRate((a["input"],), *weights)
    return PoissonRate((a["input"],), *weights, a["eps"])


def gaussian_nll_loss(a: Mapping[str, Any], c: Tensor) -> Likelihood:
    """The rows of `F.gaussian_nll_loss`."""
    return Gaussian(
        (a["input"], a["var"]), *weights_of_entries(a, c), a["target"].detach(), a["eps"]
    )


def weights_of_entries(
    a: Mapping[str, Any],
    c: Tensor,
    *,
    weight: Tensor | None = None,
    factor: Tensor | float = 1.0,
    weighted_mean: bool = False,
) -> tuple[Tensor, Tensor]:
    """The weights of the entries, and what each adds to the number that a mean divides by."""
    z = wide(a["input"])
    weights = torch.ones_like(z) if weight is None else wide(weight).expand_as(z)
    counts = weights if weighted_mean else torch.ones_like(z)
    omega = weights * factor * c
    if a["reduction"] == "mean":
        return over_total(omega, counts), counts
    return omega, c.expand_as(z) if a["reduction"] == "none" else counts


# -- Inverse distribution functions ----------------------------------------------------------------


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones."""
    tiny = torch.finfo(uniform.dtype).tiny
    return torch.special.ndtri(uniform.clamp(tiny, 1.0 - torch.finfo(uniform.dtype).eps))


def poisson(uniform: Tensor, rate: Tensor) -> Tensor:
    """The least k with P(X <= k) >= u for X ~ Poisson(rate), by bisection."""
    r = rate.to(torch.float64)
    u = uniform.to(torch.float64).clamp(max=1.0 - 1e-15)
    low = torch.full_like(r, -1.0)  # P(X <= low) < u <= P(X <= high)
    high = (r + 12.0 * r.sqrt() + 40.0).ceil()
    for _ in range(_BISECTIONS):
        middle = ((low + high) / 2.0).floor()
        enough = torch.special.gammaincc(middle.clamp(min=0.0) + 1.0, r) >= u
        enough = enough & (middle >= 0.0)
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high.to(rate.dtype)


_BISECTIONS = 32  # rates up to 10^9
