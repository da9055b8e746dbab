# SPDX-License-Identifier: Apache-2.0
r"""The damped steps of a large linear model, from one bidiagonalisation.

The Golub-Kahan process $A V_k = U_{k+1} B_k$ from f is that of LSQR and LSMR. It does not depend on
the damping: for every trust radius the best step in the span of V_k is found from the small B_k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hesse.operators.algebra import LinearOperator
from hesse.optimize.squares.step_family import StepFamily

# The memory of the basis, in bytes, unless that is less than so many vectors.
_MOST_BYTES = 1 << 30
_LEAST_VECTORS = 30
# Steps after which the small problem is solved: their number grows by this factor.
_GROWTH = 1.25
_BREAKDOWN = 10.0


def bidiagonal_steps(
    A: LinearOperator,
    f: Tensor,
    radius: float,
    *,
    rtol: float,
    epsilon: float,
    goes_on: Callable[[int], bool],
) -> StepFamily:
    """The steps for |f + A p|, on a Krylov space that is large enough for the radius.

    Args:
        A, f: the model.
        radius: for which the gradient of the damped model is to fall to `rtol` times A'f.
        rtol: that tolerance.
        epsilon: what counts as zero.
        goes_on: products so far -> whether there is time for two more.

    Cost: two products a step of the process, a vector of n for each, and their orthogonalisation.
    """
    domain, codomain = A.domain, A.codomain
    beta = codomain.norm(f)
    u = f / beta
    w = A._rmatvec(u)
    alpha = domain.norm(w)
    start, gradient = beta, alpha * beta
    bytes_each = domain.max_size * f.element_size()
    most = max(_LEAST_VECTORS, _MOST_BYTES // max(bytes_each, 1))
    basis, alphas, betas = _Rows(w / alpha), [alpha], list[float]()
    products, check_at = 1, 1
    while True:
        u = torch.sub(A._matvec(basis.last), u, alpha=alpha)
        beta = codomain.norm(u)
        u = u / beta if beta > 0.0 else u
        w = torch.sub(A._rmatvec(u), basis.last, alpha=beta)
        products += 2
        for _ in range(2):  # orthogonal up to rounding
            w = w - domain.inners(basis.rows, w) @ basis.rows
        alpha, k = domain.norm(w), len(alphas)
        betas.append(beta)
        is_whole = k >= min(domain.n, codomain.n)
        is_whole = is_whole or min(alpha, beta) <= _BREAKDOWN * epsilon * alphas[0]
        is_over = is_whole or k >= most or not math.isfinite(alpha + beta) or not goes_on(products)
        if is_over or k >= check_at:
            family, right = _small(alphas, betas, start, basis.rows, epsilon, products, is_whole)
            left = alpha * beta * family.last_coefficient(radius, right)
            if is_over or left <= rtol * gradient:
                return family
            check_at = math.ceil(_GROWTH * k)
        basis.append(w / alpha)
        alphas.append(alpha)


class _Rows:
    """Vectors side by side, in memory that doubles when it is full."""

    def __init__(self, first: Tensor) -> None:
        self._memory, self._count = first[None].clone(), 1

    @property
    def rows(self) -> Tensor:
        """The vectors so far, shape (k, n)."""
        return self._memory[: self._count]

    @property
    def last(self) -> Tensor:
        """The newest one."""
        return self._memory[self._count - 1]

    def append(self, v: Tensor) -> None:
        """One vector more."""
        if self._count == len(self._memory):
            self._memory = torch.cat([self._memory, torch.empty_like(self._memory)])
        self._memory[self._count] = v
        self._count += 1


def _small(
    alphas: list[float],
    betas: list[float],
    start: float,
    basis: Tensor,
    epsilon: float,
    products: int,
    is_complete: bool,
) -> tuple[StepFamily, Tensor]:
    """The steps in the span of the basis, and the right singular vectors of B."""
    k = len(basis)
    B = torch.zeros(k + 1, k, dtype=torch.float64)
    B[torch.arange(k), torch.arange(k)] = torch.tensor(alphas, dtype=torch.float64)
    B[torch.arange(1, k + 1), torch.arange(k)] = torch.tensor(betas, dtype=torch.float64)
    U, s, Vh = torch.linalg.svd(B, full_matrices=False)

    def span(y: Tensor) -> Tensor:
        return (y @ Vh).to(basis) @ basis

    family = StepFamily(
        s, start * U[0], span, epsilon=epsilon, products=products, is_complete=is_complete
    )
    return family, Vh.T
