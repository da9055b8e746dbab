"""The answers by routes of their own, in float64: nothing of Hesse is used.

Where units are piecewise linear, the outputs are linear in each single weight, so that a diagonal
entry of the Hessian is that of the Gauss-Newton matrix

    G = 1/N sum_i J_i' (diag p - p p') J_i,    diag p - p p' = sum_c p_c (e_c - p)(e_c - p)'

and for a weight w_kl between the unit l, of value a_l, and the unit k, with slope d_k, a row of J
is the product d_k a_l. The eigenvalues are ARPACK's, with products by double backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from benchmarks import oracle
from benchmarks.problem import Problem


@dataclass(frozen=True, eq=False)
class Exact:
    """What is known of the Hessian of a classifier; worked out when it is first asked for."""

    problem: Problem

    @cached_property
    def diagonal(self) -> Tensor:
        """diag H, shape (n,)."""
        double = self.problem.double()
        assert double.parts is not None
        return diagonal(double.parts.model, double.parts.inputs)

    @property
    def trace(self) -> float:
        """tr H."""
        return float(self.diagonal.sum())

    def largest(self, k: int) -> Tensor:
        """The k largest eigenvalues, ascending."""
        _, product = oracle.hessian(self.problem.double())
        n = self.problem.n
        A = LinearOperator(
            (n, n),
            matvec=lambda v: product(torch.from_numpy(v).reshape(-1)).detach().numpy(),
            dtype=np.float64,
        )
        start = np.random.default_rng(1).standard_normal(n)
        values = eigsh(A, k, which="LA", tol=1e-8, v0=start, return_eigenvectors=False)
        return torch.from_numpy(np.sort(values))


def diagonal(model: nn.Module, inputs: Tensor) -> Tensor:
    """diag G of the mean cross-entropy, for a sequence of layers."""
    assert isinstance(model, nn.Sequential)
    values, outputs, z = [], [], inputs
    for layer in model:
        if isinstance(layer, nn.Linear):
            values.append(z.detach())
            z = layer(z)
            outputs.append(z)
        else:
            z = layer(z)
    p = z.detach().softmax(dim=1)
    squares = [torch.zeros_like(torch.cat([layer.weight, layer.bias[:, None]], dim=1))
               for layer in model if isinstance(layer, nn.Linear)]  # fmt: skip
    for c in range(p.shape[1]):
        e = nn.functional.one_hot(torch.tensor(c), p.shape[1])
        slopes = torch.autograd.grad(z, outputs, p[:, c, None].sqrt() * (e - p), retain_graph=True)
        for square, d, a in zip(squares, slopes, values, strict=True):
            square += d.T**2 @ torch.cat([a, torch.ones_like(a[:, :1])], dim=1) ** 2
    parts = [part.reshape(-1) for s in squares for part in (s[:, :-1], s[:, -1])]
    return (torch.cat(parts) / len(inputs)).detach()
