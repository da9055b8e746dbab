# SPDX-License-Identifier: Apache-2.0
r"""Gauss quadrature by Lanczos: z'f(A) z from a small tridiagonal matrix, for many z in lockstep.

$$ z^T f(A) z \approx |z|^2 \sum_k w_k f(\theta_k), \qquad T = S \operatorname{diag}(\theta) S^T,
   \quad w_k = s_{1k}^2 $$

The processes advance together, one block of products a step, each with full re-orthogonalisation.

References: Golub & Meurant 2010, Matrices, Moments and Quadrature with Applications.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.estimators.orthonormal import components
from hesse.estimators.probes import products
from hesse.operators.base import LinearOperator
from hesse.vectors import norm


class Quadratures:
    """Lanczos processes of several starting vectors, (p, n), to a common depth.

    A process that has filled its invariant subspace ends: its rule is exact.
    """

    def __init__(self, A: LinearOperator, starts: Tensor, block_size: int, call: str) -> None:
        self.A, self.block_size, self.call = A, block_size, call
        self.bases = [row[None] / norm(row) for row in starts]
        self.alpha: list[list[float]] = [[] for _ in starts]
        self.beta: list[list[float]] = [[] for _ in starts]
        self.products = 0

    def extend(self, depth: int) -> None:
        """Go on to this depth."""
        while alive := [i for i in range(len(self.bases)) if self._goes_on(i, depth)]:
            rows = torch.stack([self.bases[i][-1] for i in alive])
            images = products(self.A, rows, self.block_size, self.call)
            self.products += len(alive)
            for i, image in zip(alive, images, strict=True):
                self._take(i, image)

    def _goes_on(self, i: int, depth: int) -> bool:
        return len(self.alpha[i]) < depth and (not self.beta[i] or self.beta[i][-1] > 0.0)

    def _take(self, i: int, image: Tensor) -> None:
        basis, size = self.bases[i], norm(image)
        rest, h = components(self.A, basis, image)
        self.alpha[i].append(float(h[-1]))
        beta = norm(rest)
        if beta <= 10 * torch.finfo(self.A.dtype).eps * size or len(basis) == self.A.shape[0]:
            beta = 0.0
        self.beta[i].append(beta)
        if beta > 0.0:
            self.bases[i] = torch.cat([basis, rest[None] / beta])

    def rule(self, i: int, depth: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights of process i, of the first `depth` steps only if given."""
        return gauss(self.alpha[i][:depth], self.beta[i][:depth])

    def ended(self, i: int) -> bool:
        """Whether the rule of process i is exact."""
        return self.beta[i][-1] == 0.0


def gauss(alpha: list[float], beta: list[float]) -> tuple[Tensor, Tensor]:
    """Nodes, ascending, and weights of the rule of a tridiagonal matrix."""
    nodes, vectors = torch.linalg.eigh(_tridiagonal(alpha, beta))
    return nodes, vectors[0] ** 2


def radau(alpha: list[float], beta: list[float], node: float) -> tuple[Tensor, Tensor]:
    """The rule with one more node, at a given place (Golub 1973, doi:10.1137/1015032)."""
    T = _tridiagonal(alpha, beta)
    last = torch.zeros(len(alpha), dtype=torch.float64)
    last[-1] = beta[-1] ** 2
    shift = torch.linalg.solve(T - node * torch.eye(len(alpha), dtype=torch.float64), last)[-1]
    return gauss([*alpha, node + float(shift)], [*beta, 0.0])


def _tridiagonal(alpha: list[float], beta: list[float]) -> Tensor:
    off = torch.tensor(beta[: len(alpha) - 1], dtype=torch.float64)
    return torch.diag(torch.tensor(alpha, dtype=torch.float64)) + _off(off, 1) + _off(off, -1)


def _off(entries: Tensor, place: int) -> Tensor:
    return torch.diag(entries, place)
