# SPDX-License-Identifier: Apache-2.0
r"""Gauss quadrature by Lanczos: z'f(A) z from a small tridiagonal matrix, for many z in lockstep.

$$ z^T f(A) z \approx |z|^2 \sum_k w_k f(\theta_k), \qquad T = S \operatorname{diag}(\theta) S^T,
   \quad w_k = s_{1k}^2 $$

The processes advance together, one block of products a step.

References: Golub & Meurant 2010, Matrices, Moments and Quadrature with Applications.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.estimators.lockstep import has_ended, step_together
from hesse.krylov.lanczos import Lanczos
from hesse.operators.base import LinearOperator


class Quadratures:
    """Lanczos processes of several starting vectors, (p, n), to a common depth.

    A process that has filled its invariant subspace ends: its rule is exact.
    """

    def __init__(self, A: LinearOperator, starts: Tensor, block_size: int, call: str) -> None:
        self.A, self.block_size, self.call = A, block_size, call
        unused = torch.Generator()  # for directions beyond an invariant subspace
        self.processes = [Lanczos(A, 1, start, unused) for start in starts]
        self.products = 0

    def extend(self, depth: int) -> None:
        """Go on to this depth."""
        for process in self.processes:
            process.make_room(depth)
        while alive := [p for p in self.processes if p.size < depth and not has_ended(p)]:
            step_together(self.A, alive, self.block_size, self.call)
            self.products += len(alive)

    def ended(self, i: int) -> bool:
        """Whether the rule of process i is exact."""
        return has_ended(self.processes[i])

    def recurrence(self, i: int) -> tuple[list[float], list[float]]:
        """The diagonal of the matrix of process i, and what is beside it and leads on."""
        T, size = self.processes[i].T, self.processes[i].size
        return T.diagonal()[:size].tolist(), T.diagonal(-1)[:size].tolist()

    def rule(self, i: int, depth: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights of process i, of the first `depth` steps only if given."""
        alpha, beta = self.recurrence(i)
        return gauss(alpha[:depth], beta[:depth])


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
