# SPDX-License-Identifier: Apache-2.0
"""`sample_normal`: draws from the Gaussian whose precision, or covariance, is an operator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import check_choice, check_count
from hesse.estimators.arguments import Budget
from hesse.estimators.estimate import Estimate
from hesse.estimators.matrix_function import matrix_function
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors.rows import stacked


@public("hesse.sample_normal({A})")
def sample_normal(
    A: LinearOperator | Tensor,
    count: int = 1,
    *,
    role: Literal["precision", "covariance"] = "precision",
    rtol: float | None = None,
    basis_size: int = 200,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""Draws from N(0, A^-1), or from N(0, A).

    $$ x = A^{-1/2} z \;\text{ or }\; A^{1/2} z, \qquad z \sim N(0, I) $$

    Args:
        A: symmetric positive definite operator (or matrix), n x n.
        count: how many draws.
        role: what A is of the distribution: its "precision" or its "covariance".
        rtol, basis_size, max_products, max_seconds: as of `matrix_function`, a column of which is a
            draw.
        generator, callback, progress, block_size, memory_budget: as of `matrix_function`.

    Returns:
        Estimate: value (n, count), a draw in each column; standard_error (count,), the estimated
        error |x - A^(-1/2) z| of each; products; status.

    Cost: as of `matrix_function`.

    References: Simpson, Turner & Pettitt 2008, Fast sampling from a Gaussian Markov random field
        using Krylov subspace approaches; Chow & Saad 2014, doi:10.1137/130920587.

    >>> draws = sample_normal(4 * torch.eye(3), 1000, generator=torch.Generator().manual_seed(0))
    >>> draws.value.shape, round(float(draws.value.var()), 2)       # the variance is 1/4
    (torch.Size([3, 1000]), 0.25)
    """
    A = aslinearoperator(A)
    call = f"hesse.sample_normal({A}, {count})"
    check_choice("role", role, ["precision", "covariance"], call)
    count = check_count("count", count, 1, call)
    draws = stacked(count, (A.domain.gaussian(generator) for _ in range(count))).T
    return matrix_function(
        "inverse-sqrt" if role == "precision" else "sqrt",
        A,
        draws,
        rtol=rtol,
        basis_size=basis_size,
        max_products=max_products,
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        block_size=block_size,
        memory_budget=memory_budget,
    )
