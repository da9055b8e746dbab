# SPDX-License-Identifier: Apache-2.0
"""How many eigenvalues lie in an interval."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, is_number
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import Columns, ExactValue, eigenvalues_of, exact_estimate
from hesse.estimators.quadrature import Quadratures, radau
from hesse.estimators.spectral_sum import LEAST_PRODUCTS, spectral_sum
from hesse.estimators.structured import known_eigenvalues
from hesse.estimators.tolerance import Tolerance
from hesse.estimators.vector_budget import Budget
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


@public("hesse.count_eigenvalues({A}, {low}, {high})")
def count_eigenvalues(
    A: LinearOperator | Tensor,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    rtol: float = 0.02,
    atol: float = 0.5,
    max_products: int = 10000,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    checkpoint: FilePath = None,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> Estimate:
    r"""The number of eigenvalues in [low, high] of a symmetric operator.

    $$ \#\{\lambda_i \le x\} = \operatorname{tr} 1_{\lambda \le x}(A)
       \approx \frac{n}{m} \sum_{j=1}^m \Bigl( \sum_{\theta_{jk} < x} w_{jk}
       + \tfrac12 w_j(x) \Bigr) $$

    with the nodes theta_jk and weights w_jk of Gauss-Radau rules that have a node at x itself, of
    weight w_j(x). By the inequalities of Chebyshev, Markov and Stieltjes the weight of the spectrum
    below x differs from the sum by at most half of w_j(x).

    Args:
        A: symmetric operator (or matrix).
        low, high: the interval; infinite for none. `high=0` counts the negative eigenvalues (and
            zeros: half of an eigenvalue at an end itself, to rounding, is counted, and half of it
            is in the error).
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol). Checked at
            16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the signs.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run resumes from it to the same bits.
        block_size: how many processes advance together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the bases: fewer processes at a time.

    Returns:
        Estimate(value, standard_error, products), not rounded to an integer. `interval` contains
        the statistical error and the bound of the quadrature error. The steps of a process begin at
        16 and double until the latter is a fifth of the former. Exact, with standard error 0, for n
        <= 10; for n <= 512 too, unless a limit of time, a callback or a checkpoint is given; and,
        up to n = 8192, as soon as the spread of the probes shows that the tolerance needs n
        products or more: all columns, and their eigenvalues (n^2 numbers). Ctrl-C returns the
        estimate so far.

    Cost: a product a step of every probe; 5 vectors for each of block_size processes, 4 for a
        single one (for n < 4096, where they are short, as many more as there are steps). A
        checkpoint takes one more product.

    Raises:
        HesseError: A is not symmetric; low > high; NaN.

    References: Di Napoli, Polizzi & Saad 2016, doi:10.1002/nla.2048; Golub & Meurant 2010, ch. 6
        (the rules); Akhiezer 1965, The Classical Moment Problem, 2.5.4 (the inequalities).

    >>> count_eigenvalues(torch.diag(torch.tensor([-1.0, 2.0, 4.0])), high=0.0).value
    1.0
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    if not (is_number(low) and is_number(high) and low <= high):
        raise ArgumentError(
            expected="two numbers, low <= high",
            got=f"low={low!r}, high={high!r}",
            remedy="Give them in ascending order; leave one out for an infinite interval.",
        )
    limits = Run(
        "count_eigenvalues",
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
        exact=partial(_exact_count, A, low, high),
        needs_matrix=True,
        low=low,
        high=high,
    )
    known = known_eigenvalues(A)
    if known is not None:
        return exact_estimate(_count_of(known, A.dtype, low, high), 0)
    n = A.domain.n
    if run.is_small:
        return run.of_all_columns(partial(_count_within, low, high))
    if run.starts_exact(LEAST_PRODUCTS):
        return run.of_all_columns(partial(_exact_count, A, low, high))

    def evaluate(quadratures: Quadratures, i: int) -> tuple[float, float]:
        (above, bound), (below, other) = (weight_below(quadratures, i, x) for x in (high, low))
        return n * (above - below), n * (bound + other)

    return spectral_sum(run, evaluate)


def weight_below(quadratures: Quadratures, i: int, x: float) -> tuple[float, float]:
    """The weight of the spectrum below x in probe i, and a bound of its error."""
    if math.isinf(x):
        return float(x > 0), 0.0
    if quadratures.ended(i):
        return _weight_of_eigenvalues(*quadratures.rule(i), quadratures.A.dtype, x)
    nodes, weights = radau(*quadratures.recurrence(i), x)
    at = int((nodes - x).abs().argmin())
    return float(weights[:at].sum() + 0.5 * weights[at]), 0.5 * float(weights[at])


def _count_within(low: float, high: float, columns: Columns) -> ExactValue:
    """Those in [low, high] of a small matrix, an integer."""
    values, _ = eigenvalues_of(columns)
    return ExactValue(float(((values >= low) & (values <= high)).sum()), 0.0)


def _exact_count(A: LinearOperator, low: float, high: float, columns: Columns) -> ExactValue:
    """Half of an eigenvalue at an end, to rounding, is counted, and half is in doubt."""
    return _count_of(eigenvalues_of(columns)[0], A.dtype, low, high)


def _count_of(values: Tensor, dtype: torch.dtype, low: float, high: float) -> ExactValue:
    ones = torch.ones_like(values)
    (above, bound), (below, other) = (
        (len(values) * float(x > 0), 0.0)
        if math.isinf(x)
        else _weight_of_eigenvalues(values, ones, dtype, x)
        for x in (high, low)
    )
    return ExactValue(above - below, bound + other)


def _weight_of_eigenvalues(
    nodes: Tensor, weights: Tensor, dtype: torch.dtype, x: float
) -> tuple[float, float]:
    """The same where the nodes are eigenvalues: only one at x itself, to rounding, is uncertain."""
    rounding = 100 * torch.finfo(dtype).eps * float(nodes.abs().max())
    near = (nodes - x).abs() <= rounding
    half = 0.5 * float(weights[near].sum())
    return float(weights[(nodes < x) & ~near].sum()) + half, half
