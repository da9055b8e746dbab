# SPDX-License-Identifier: Apache-2.0
"""The logarithm of the determinant of a positive definite operator."""

from __future__ import annotations

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import OperatorError
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import Columns, ExactValue, eigenvalues_of
from hesse.estimators.quadrature import Quadratures, gauss
from hesse.estimators.spectral_sum import LEAST_PRODUCTS, spectral_sum
from hesse.estimators.structured import known_logdet
from hesse.estimators.tolerance import Tolerance
from hesse.estimators.vector_budget import Budget
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


@public("hesse.logdet({A})")
def logdet(
    A: LinearOperator | Tensor,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    max_products: int = 10000,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""log det A of a symmetric positive definite operator, by stochastic Lanczos quadrature.

    $$ \log\det A = \operatorname{tr} \log A \approx \frac{n}{m} \sum_{j=1}^m \sum_k
       w_{jk} \log \theta_{jk} $$

    with Ritz values theta_jk and weights w_jk of Lanczos processes from m random vectors of signs.

    Args:
        A: symmetric positive definite operator (or matrix).
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol); near
            det A = 1 give an atol. Checked at 16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the signs.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run resumes from it to the same bits.
        block_size: how many processes advance together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the bases: fewer processes at a time.

    Returns:
        Estimate(value, standard_error, products). The steps of a process begin at 16 and double
        until the quadrature error, extrapolated from the values after a quarter, half and all of
        the steps as for geometric convergence, is a fifth of the statistical error; `interval`
        contains both. Exact, with standard error 0, for n <= 10; for n <= 512 too, unless a limit
        of time, a callback or a checkpoint is given; and, up to n = 8192, as soon as the spread of
        the probes shows that the tolerance needs n products or more: all columns, and their
        eigenvalues (n^2 numbers). Ctrl-C returns the estimate so far.

    Cost: a product a step of every probe; 5 vectors for each of block_size processes, 4 for a
        single one (for n < 4096, where they are short, as many more as there are steps). A
        checkpoint takes one more product.

    Raises:
        HesseError: A is not symmetric, or not positive definite (a Ritz value <= 0 is named); NaN.

    References: Ubaru, Chen & Saad 2017, doi:10.1137/16M1104974.

    >>> round(logdet(torch.diag(torch.tensor([1.0, 2.0, 4.0]))).value, 4)    # log 8
    2.0794
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    limits = Run(
        "logdet",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
    )
    run = EstimatorRun.of(
        A,
        limits,
        Tolerance(rtol, atol),
        generator=generator,
        block_size=block_size,
        memory_budget=memory_budget,
        exact=_exact_logdet,
        needs_matrix=True,
    )
    known = known_logdet(A)
    if known is not None:
        return known
    n = A.domain.n
    if run.is_small or run.starts_exact(LEAST_PRODUCTS):
        return run.of_all_columns(_exact_logdet)

    def evaluate(quadratures: Quadratures, i: int) -> tuple[float, float]:
        return _value_and_bound(quadratures, i, n)

    return spectral_sum(run, evaluate)


def _exact_logdet(columns: Columns) -> ExactValue:
    values, rounding = eigenvalues_of(columns)
    value = _log(values, torch.ones_like(values))
    return ExactValue(value, 0.0, rounding * float((1 / values).sum()))


def _value_and_bound(quadratures: Quadratures, i: int, n: int) -> tuple[float, float]:
    """The value at full depth and an extrapolated bound of its error."""
    alpha, beta = quadratures.recurrence(i)
    depths = [max(1, len(alpha) // 4), max(1, len(alpha) // 2), len(alpha)]
    quarter, half, whole = (_log(*gauss(alpha[:depth], beta[:depth])) for depth in depths)
    if quadratures.ended(i):
        return n * whole, 0.0
    last, before = abs(whole - half), abs(half - quarter)
    return n * whole, n * last * min(1.0, last / before if before > 0.0 else 1.0)


def _log(nodes: Tensor, weights: Tensor) -> float:
    if not float(nodes.min()) > 0.0:
        raise OperatorError(
            expected="a positive definite operator",
            got=f"the Ritz value {float(nodes.min()):.6g}: v'A v for a v with |v| = 1",
            remedy="Add damping: A + c * hesse.identity_operator(n); for a determinant without its "
            "sign take half of logdet(A @ A).",
        )
    return float(weights @ nodes.log())
