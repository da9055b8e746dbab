# SPDX-License-Identifier: Apache-2.0
"""`matrix_function`: f(A) b for a symmetric operator, by the Lanczos process started from b."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.estimators.estimate import Estimate
from hesse.estimators.function_columns import FunctionColumns, FunctionOptions
from hesse.estimators.ritz_function import Name, RitzFunction
from hesse.estimators.vector_budget import Budget
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback
from hesse.vectors.rows import transposed
from hesse.vectors.space import Tree


@public("hesse.matrix_function({fun}, {A}, b)")
def matrix_function(
    fun: Name | Callable[[Tensor], Tensor],
    A: LinearOperator | Tensor,
    b: Tree,
    *,
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
    r"""f(A) b for symmetric A, with an estimate of its error.

    $$ f(A)\, b = \sum_i f(\lambda_i)\, u_i u_i^T b \approx
       \lVert b \rVert\, V_m f(T_m)\, e_1 = y_m $$

    Args:
        fun: "sqrt", "inverse-sqrt", "inverse", "exp", "log", "sign", or a function of a float64
            tensor of eigenvalues, entry by entry.
        A: symmetric operator (or matrix); for "sqrt" positive semi-definite, for "inverse-sqrt" and
            "log" positive definite.
        b: flat vector (n,), block (n, k), or a tree.
        rtol: stop when the estimated error is at most rtol |y|; default eps^(2/3). Of a block, each
            column stops by itself.
        basis_size: Lanczos steps at most; so many vectors are held for a column.
        max_products, max_seconds: limits of a column; columns that advance together share the time.
        generator: of directions out of an invariant subspace, on which the answer does not depend.
        callback: called with a state that has `error` and `products`, those of a column, after
            every evaluation of its error; a true result stops the column.
        progress: show a bar.
        block_size: how many columns advance together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for what the columns hold that advance
            together.

    Returns:
        Estimate: value in the form of b; standard_error, here the larger of the last two changes
        of y over 4 steps or more, which exceeds the error of y_m as long as the process converges
        (a tensor (k,) for a block); products; status, that of the first column that has not
        converged. After Ctrl-C a column that was not evaluated yet is 0, and its error infinite.

    Cost: a product a step and column: m blocks of products for m steps of the columns that advance
        together; basis_size + 5 vectors for each of these columns, 2 for every column, and two
        fewer for a single one.

    Raises:
        HesseError: A not symmetric; a Ritz value that is not in the domain of f; NaN; a budget that
            is too small.

    References: Higham 2008, Functions of Matrices, section 13.2; Saad 1992, doi:10.1137/0729014.

    >>> A = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    >>> matrix_function("sqrt", A, torch.ones(3)).value
    tensor([1.0000, 2.0000, 3.0000])
    """
    A, f = aslinearoperator(A), RitzFunction(fun)
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
    columns = FunctionColumns(f, A, options)
    if isinstance(b, Tensor) and b.ndim == 2 and not A.domain.is_point(b):
        block = A.domain.check_vector(b, what="b", ndim=2).detach()
        A.domain.check_finite(block, "b")
        found = columns.approximate(transposed(block))
        return Estimate(found.values.T, found.errors, found.products, found.status, 1.0)
    flat, leave = A.domain.enter(b, what="b")
    found = columns.approximate(A.domain.check_finite(flat, "b")[None])
    value, error = leave(found.values[0]), float(found.errors[0])
    return Estimate(value, error, found.products, found.status, 1.0)
