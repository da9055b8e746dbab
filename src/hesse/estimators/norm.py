# SPDX-License-Identifier: Apache-2.0
"""The Frobenius and the spectral norm of an operator of any shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import ArgumentError, Status, check_count, is_number
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun, RunningEstimate
from hesse.estimators.exact import frobenius_norm_of, spectral_norm_of
from hesse.estimators.probes import products, signs
from hesse.estimators.structured import known_norm
from hesse.estimators.tolerance import FIRST_CHECK, Tolerance
from hesse.estimators.vector_budget import Budget
from hesse.krylov.eigsh import eigsh
from hesse.krylov.lanczos import Lanczos
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


@public("hesse.norm({A}, {ord})")
def norm(
    A: LinearOperator | Tensor,
    ord: Literal["fro", 2] = "fro",
    *,
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
    r"""The Frobenius norm, or the spectral norm, of an operator that need not be square.

    $$ \lVert A \rVert_F^2 = \mathbb{E}\, \lVert A z \rVert^2, \quad z \in \{-1, 1\}^n; \qquad
       \lVert A \rVert_2 = \sigma_{\max}(A) $$

    Args:
        A: operator (or matrix).
        ord: "fro", or 2 for the largest singular value (needs A' unless A is symmetric).
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol); for "fro"
            checked at 16, 24, 36, ... probes. The spectral norm has no atol.
        max_products, max_seconds: stop in any case.
        generator: of the signs, or of the starting vector.
        callback: called with the running `Estimate`, or with the state of `hesse.eigsh`; a true
            result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run resumes from it to the same bits.
        block_size: how many probes are multiplied together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the vectors.

    Returns:
        Estimate(value, standard_error, products). Of the spectral norm the standard_error is not
        Estimate(value, standard_error, products). Of the spectral norm the standard_error is not
        statistical: it is the residual, and a singular value lies within it of the value. That need
        not be the largest: among close ones the value is a lower bound of the norm, within rtol
        with a probability that grows with the steps, and its `interval` need not contain the norm.
        Exact for n <= 10; "fro" also as soon as the tolerance needs n products or more. Ctrl-C
        returns the estimate so far.

    Cost: "fro": a product a probe, 2 block_size vectors; the variance of |A z|^2 is
        2 (|A'A|_F^2 - sum_i |a_i|^4), a_i the columns, and the square root halves the relative
        error. 2: a product a step, or one with A and one with A'; the basis of `hesse.eigsh`.

    Raises:
        HesseError: NaN; no adjoint where one is needed; an unknown norm.

    References: Hutchinson 1990, doi:10.1080/03610919008812866, for the trace of A'A; Golub & Van
        Loan 2013, Matrix Computations, 10.4 (the spectral norm).

    >>> norm(torch.diag(torch.tensor([3.0, 4.0]))).value, norm(torch.ones(2, 8), 2).value
    (5.0, 4.0)
    """
    A = aslinearoperator(A)
    if not (isinstance(ord, str) or is_number(ord)) or ord not in ("fro", 2):
        raise ArgumentError(
            expected="ord to be 'fro' or 2", got=repr(ord), remedy="Leave it out for 'fro'."
        )
    limits = Run(
        "norm",
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
        exact=spectral_norm_of if ord == 2 else frobenius_norm_of,
        needs_matrix=ord == 2,
    )
    known = known_norm(A, ord)
    if known is not None:
        return known
    if run.exact is not None and (run.is_small or run.starts_exact(FIRST_CHECK)):
        return run.of_all_columns(run.exact)
    if ord == 2:
        return _spectral_norm(
            A,
            max_products,
            rtol=rtol,
            max_seconds=max_seconds,
            generator=generator,
            callback=callback,
            progress=progress,
            checkpoint=checkpoint,
            memory_budget=memory_budget,
        )
    A.announce(run.criterion.min_samples(max_products))
    return _frobenius_norm(run)


@dataclass
class _SquaredNorm(RunningEstimate):
    """Samples of the squared norm; the estimate is that of its root, by the delta method."""

    def estimate(self, status: Status = Status.UNFINISHED) -> Estimate | None:
        square = super().estimate(status)
        if square is None or self.exact is not None:
            return square
        root = math.sqrt(square.value)
        error = square.standard_error / (2 * root) if root > 0.0 else square.standard_error
        return Estimate(root, error, square.products, status, square.quantile)


def _frobenius_norm(run: EstimatorRun[Tolerance]) -> Estimate:
    A, state = run.A, _SquaredNorm(run.generator)

    def step() -> bool:
        probes = signs(A.domain, run.next_samples(state), state.generator)
        images = products(A, probes, run.block_size)
        state.add(A.codomain.inner_pairs(*((image, image) for image in images)), len(probes))
        return True

    return run.sample(state, step)


def _spectral_norm(A: LinearOperator, max_products: int, **options: Any) -> Estimate:
    """|A|_2 from the eigenvalue of A of largest magnitude, or the largest of A'A."""
    squared = not A.symmetric
    each = 2 if squared else 1
    pairs = eigsh(
        A.T @ A if squared else A,
        1,
        "LA" if squared else "LM",
        method=Lanczos(search_missed=False),
        max_products=check_count("max_products", max_products, 2 * each) // each,
        **options,
    )
    value, residual = abs(float(pairs.values[0])), float(pairs.residuals[0])
    if squared:
        value = math.sqrt(value)
        # |sigma^2 - value^2| <= residual, so |sigma - value| is at most either of these.
        residual = min(residual / value if value > 0.0 else math.inf, math.sqrt(residual))
    return Estimate(value, residual, each * pairs.products, pairs.status, 1.0)
