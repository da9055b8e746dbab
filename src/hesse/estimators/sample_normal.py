# SPDX-License-Identifier: Apache-2.0
"""`sample_normal`: draws from the Gaussian whose precision, or covariance, is an operator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.errors import Status, check_choice, check_count
from hesse.estimators.estimate import Estimate
from hesse.estimators.function_columns import FunctionColumns, FunctionOptions
from hesse.estimators.ritz_function import RitzFunction
from hesse.estimators.vector_budget import Budget
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors.rows import stacked


@public("hesse.sample_normal({A}, {count}, role={role})")
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
        role: whether A is the "precision" or the "covariance" of the distribution.
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
    check_choice("role", role, ["precision", "covariance"])
    options = FunctionOptions(
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
    f = RitzFunction("inverse-sqrt" if role == "precision" else "sqrt")
    columns = FunctionColumns(f, A, options)
    count = check_count("count", count, 1)
    draws = stacked(count, (A.domain.gaussian(generator) for _ in range(count)))
    if (root := _known_root(A, role)) is not None:
        return Estimate(
            root._matmat(draws.T), torch.zeros(count).double(), 0, Status.CONVERGED, 1.0
        )
    found = columns.approximate(draws)
    return Estimate(found.values.T, found.errors, found.products, found.status, 1.0)


def _known_root(A: LinearOperator, role: str) -> LinearOperator | None:
    """R with R R' the covariance, where the structure of A gives one that is no function of A."""
    root = A._root() if A.is_structured else None
    if root is None or role == "covariance":
        return root
    inverse = root._inverse()  # A^-1 = R^-T R^-1
    return None if inverse is None else inverse.T
