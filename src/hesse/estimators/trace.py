# SPDX-License-Identifier: Apache-2.0
"""The trace from products with random signs."""

from __future__ import annotations

import math

import torch

from hesse.errors import ArgumentError, NonFiniteError
from hesse.estimators.estimate import Estimate, RunningMean
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, asks_to_stop, progress_bar
from hesse.vectors import rademacher

_LEAST_PROBES = 10  # a standard error from fewer samples is itself too uncertain to stop on


def trace(
    A: LinearOperator | torch.Tensor,
    *,
    rtol: float = 0.01,
    atol: float = 0.0,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Estimate:
    r"""The trace of a square operator by Hutchinson's estimator, with its standard error.

    $$ \operatorname{tr} A = \mathbb{E}\, z^T A z \approx \frac1m \sum_{i=1}^m z_i^T A z_i,
       \qquad z_i \in \{-1, 1\}^n \text{ with independent random signs} $$

    Args:
        A: square operator (or matrix).
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol), but not
            before 10 probes.
        max_products: stop in any case.
        generator: of the signs.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.

    Returns:
        Estimate(value, standard_error, products). Exact, with standard error 0, for n <= 10. Ctrl-C
        returns the estimate so far.

    Cost: one product a probe (half of one where v'Av is cheaper, as for a Gauss-Newton matrix); the
        variance of one probe is 2 (|A|_F^2 - sum_i a_ii^2) for symmetric A. Two vectors.

    References: Hutchinson 1990, doi:10.1080/03610919008812866.

    >>> trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    Estimate(value=6.0, standard_error=0.0, products=3)
    """
    A = aslinearoperator(A)
    A._check_square("trace")
    call = f"hesse.trace({A})"
    if max_products < 1:
        raise ArgumentError(
            call, expected="max_products >= 1", got=str(max_products), remedy="Leave it out."
        )
    if A.shape[0] <= min(_LEAST_PROBES, max_products):
        return Estimate(float(A.to_dense().diagonal().sum(dtype=torch.float64)), 0.0, A.shape[0])
    samples = RunningMean()
    A.expect(_LEAST_PROBES if max(rtol, atol) > 0.0 else max_products)
    try:
        with progress_bar(progress, "trace", max_products) as bar:
            while samples.count < max_products:
                samples.add(A._curvature(rademacher(A.domain, generator)))
                bar.update()
                _check_finite(samples.mean, call)
                estimate = Estimate(samples.mean, samples.standard_error, samples.count)
                tolerance = max(rtol * abs(estimate.value), atol)
                enough = samples.count >= _LEAST_PROBES and estimate.standard_error <= tolerance
                if enough or asks_to_stop(callback, estimate):
                    break
    except KeyboardInterrupt:
        if samples.count == 0:
            raise
    return Estimate(samples.mean, samples.standard_error, samples.count)


def _check_finite(value: float, call: str) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(
            call,
            expected="finite products",
            got="NaN or Inf in z'Az",
            remedy="Check the operator with hesse.testing.check_operator.",
        )
