# SPDX-License-Identifier: Apache-2.0
"""The diagonal: as structure gives it, as it is computed, or from products with random signs."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.estimators.computed import computed_diagonal
from hesse.estimators.deflated_diagonal import AutoDiagonal
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import diagonal_of
from hesse.estimators.hutchinson import Hutchinson
from hesse.estimators.structured import known_diagonal
from hesse.estimators.tolerance import FIRST_CHECK, Tolerance
from hesse.estimators.vector_budget import Budget
from hesse.estimators.xdiag import XDiag
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_square
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


class DiagonalMethod(Protocol):
    """A method of `diagonal`."""

    name: ClassVar[str]
    """What a checkpoint knows it by."""

    def estimate_diagonal(self, run: EstimatorRun, /) -> Estimate:
        """The estimate."""
        ...


_METHODS: dict[str, DiagonalMethod] = {
    method.name: method for method in (AutoDiagonal(), Hutchinson(), XDiag())
}


@public("hesse.diagonal({A}, method={method})")
def diagonal(
    A: LinearOperator | Tensor,
    *,
    method: Literal["auto", "hutchinson", "xdiag"] | DiagonalMethod = "auto",
    rtol: float = 0.01,
    atol: float = 0.0,
    max_products: int = 1000,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""The diagonal of a square operator: exact where that is cheap, else with standard errors.

    $$ \operatorname{diag} A = \operatorname{diag}(QQ^T A)
       + \mathbb{E}\, z \odot (I - QQ^T) A z, \qquad z \in \{-1, 1\}^n $$

    from products with random signs z. Of matrices J'BJ (`ggn_operator`, `fisher_operator`,
    `gradient_covariance_operator`; their sums with diagonal matrices, their blocks) "auto" computes
    it from squared gradients of single examples instead, which are not formed where a weight is
    applied once to an example:

    $$ \operatorname{diag}(J^T B J) = \sum_u \sum_n (J_n^T u_n)^2, \qquad
       \sum_u u_n u_n^T = B_n $$

    with a vector u for each output of an example (places times classes), or for each of its rows
    for an empirical or sampled Fisher matrix. Up to 256 vectors it is exact; beyond, it is the mean
    over vectors of random signs, until all of them are fewer than the tolerance needs. `about` says
    which. Products are taken where examples influence one another.

    Args:
        A: square operator (or matrix).
        method: `Hutchinson()` or "hutchinson" (no Q: the mean of z * A z), `XDiag()` or "xdiag"
            (each probe tests the sketch of all others; the most accurate where singular values
            decay fast). "auto" asks the operator first, as above; where it must sample products it
            takes ten plain probes; where that saves products it makes Q of these ten products, adds
            to it while that saves more, and samples the rest.
        rtol, atol: stop when the norm of the standard error is at most max(rtol |estimate|, atol).
            This is checked at 16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the signs.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run resumes from it to the same bits.
        block_size: how many probes are multiplied together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the vectors of the estimator.

    Returns:
        Estimate whose value and standard_error are flat vectors (n,), in the order of
        `A.domain.names`: `A.domain.unflatten` makes trees of them. Exact, with standard error 0,
        for n <= 10; "auto" is exact for n <= 16, and takes the n products with unit vectors as soon
        as the spread of the probes shows that the tolerance needs as many. Ctrl-C returns the
        estimate so far. `about` is a text where it was computed in another way than from products.

        95 of 100 entries of `interval` hold the truth, over all entries taken together; those of an
        entry whose row has few neighbours of its size may hold it less often, as its samples are
        far from normal.

    Cost: a product a probe, and 3 block_size + 7 vectors; with deflation a product with A, one with
        A' and a vector for each direction of Q, and three vectors more for each of ten while it
        grows. `XDiag` says its own. A checkpoint takes one more product.

        J'BJ: a backward pass without weight gradients for each vector u, 1/3 of a gradient, which
        `products` counts as 1/4 of a product; two to three times that where weights are shared by
        many places of an example; and one gradient for each sweep. For a multilayer perceptron and
        ten classes 1.6 gradients in all. A trace at the first time. Parameters whose gradient no
        rule reads off the trace take a backward pass for each example and vector, and `about` names
        them. Limits of time are seen between samples, not within the exact diagonal.

    Raises:
        HesseError: not square; NaN; a budget that is too small; no adjoint where one is needed.

    References: Bekas, Kokiopoulou & Saad 2007, doi:10.1016/j.apnum.2007.01.003; Baston &
        Nakatsukasa 2022, arXiv:2201.10684 (deflation); Epperly, Tropp & Webber 2024,
        doi:10.1137/23M1548323.

    >>> diagonal(torch.tensor([[1.0, 2.0], [2.0, 3.0]])).value
    tensor([1., 3.])
    """
    A = aslinearoperator(A)
    check_square(A)
    chosen = find_method(method, _METHODS, "estimate_diagonal")
    limits = Run(
        "diagonal",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    exact = partial(diagonal_of, A.domain)
    run = EstimatorRun.of(
        A,
        limits,
        Tolerance(rtol, atol, A.domain.norm),
        generator=generator,
        block_size=block_size,
        memory_budget=memory_budget,
        exact=exact if chosen.name == AutoDiagonal.name else None,
        method=chosen.name,
    )
    known = known_diagonal(A) if run.exact is not None else None
    if known is not None:
        return known
    if run.is_small or run.starts_exact(FIRST_CHECK):
        return run.of_all_columns(exact)
    computed = computed_diagonal(run) if run.exact is not None else None
    if computed is not None:
        return computed
    A.announce(run.criterion.min_samples(max_products))
    return chosen.estimate_diagonal(run)
