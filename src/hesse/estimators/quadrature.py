# SPDX-License-Identifier: Apache-2.0
r"""Gauss quadrature by the Lanczos process: z'f(A) z from a small tridiagonal matrix.

$$ z^T f(A) z \approx |z|^2 \sum_k w_k f(\theta_k), \qquad T = S \operatorname{diag}(\theta) S^T,
   \quad w_k = s_{1k}^2 $$

The processes advance in lock-step, one block of products a step.

References: Golub & Meurant 2010, Matrices, Moments and Quadrature with Applications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.estimators.lockstep import Process, has_ended, step_together
from hesse.krylov.lanczos_process import LONG, LanczosProcess
from hesse.krylov.recurrence import Recurrence
from hesse.operators.algebra import LinearOperator


class Quadratures:
    """Lanczos processes of several starting vectors, (p, n), to a common depth.

    A process that has filled an invariant subspace ends: its rule is exact. For short vectors the
    basis is kept, so that this is recognised; for long ones it is not, which takes a twentieth of
    the memory.
    """

    def __init__(
        self, A: LinearOperator, starts: Tensor | Sequence[Tensor], block_size: int
    ) -> None:
        self.A, self.block_size = A, block_size
        self.products = 0
        self.processes: list[Process] = [_process(A, start) for start in starts]

    def extend(self, depth: int) -> None:
        """Take all processes to this depth."""
        self.make_room(depth)
        while self.step(depth):
            pass

    def make_room(self, depth: int) -> None:
        """Let the bases become as large as this depth needs."""
        for process in self.processes:
            if isinstance(process, LanczosProcess):
                process.make_room(depth)

    def step(self, depth: int) -> int:
        """A step of every process that is above this depth and has not ended; how many are."""
        alive = [p for p in self.processes if p.size < depth and not has_ended(p)]
        if alive:
            step_together(self.A, alive, self.block_size)
            self.products += len(alive)
        return len(alive)

    def ended(self, i: int) -> bool:
        """Whether the rule of process i is exact."""
        return has_ended(self.processes[i])

    def recurrence(self, i: int) -> tuple[list[float], list[float]]:
        """The diagonal of the Lanczos matrix of process i and the entries beside it, one more."""
        return self.processes[i].tridiagonal

    def rule(self, i: int, depth: int | None = None) -> tuple[Tensor, Tensor]:
        """Nodes and weights of process i, of the first `depth` steps only if given."""
        alpha, beta = self.recurrence(i)
        return gauss(alpha[:depth], beta[:depth])


def pack(process: Process) -> list[Any]:
    """The state of a process as a checkpoint holds it: tensors, numbers, lists of numbers."""
    if isinstance(process, Recurrence):
        names = ("following", "before", "alpha", "beta", "largest")
    else:
        names = ("used", "T", "size", "rows", "products", "largest", "due")
    return [getattr(process, name) for name in names]


def unpack(A: LinearOperator, state: list[Any]) -> Process:
    """The process of a packed state."""
    if A.domain.n >= LONG:
        recurrence = Recurrence(A, state[0])
        recurrence.following, recurrence.before, recurrence.alpha, recurrence.beta = state[:4]
        recurrence.largest = state[4]
        return recurrence
    used, T, *counts = state
    lanczos = LanczosProcess(A, len(T) - 1, used[0], torch.Generator())
    lanczos.used, lanczos.T, lanczos.lost = used, T, torch.zeros_like(T)
    lanczos.size, lanczos.rows, lanczos.products, lanczos.largest, lanczos.due = counts
    return lanczos


def vectors_held(n: int, depth: int) -> int:
    """Vectors that a process takes: its basis, one a step, and the next product; or none kept."""
    return depth + 3 if n < LONG else 5


def _process(A: LinearOperator, start: Tensor) -> Process:
    if A.domain.n >= LONG:
        return Recurrence(A, start)
    unused = torch.Generator()  # for directions beyond an invariant subspace
    return LanczosProcess(A, 1, start, unused)


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
    diagonal = torch.tensor(alpha, dtype=torch.float64)
    return torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
