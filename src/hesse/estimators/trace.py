# SPDX-License-Identifier: Apache-2.0
"""The trace from products with random vectors: the methods, and the choice between them."""

from __future__ import annotations

from typing import Literal

import torch

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import check_choice
from hesse.estimators.arguments import Arguments, Budget
from hesse.estimators.estimate import Estimate
from hesse.estimators.hutchinson import hutchinson
from hesse.estimators.hutchpp import TraceDeflation
from hesse.estimators.sampling import Sampler, Target
from hesse.estimators.xnystrace import xnystrace
from hesse.estimators.xtrace import xtrace
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback

TraceMethod = Literal["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"]


@public("hesse.trace({A})")
def trace(
    A: LinearOperator | torch.Tensor,
    *,
    method: TraceMethod = "auto",
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
    r"""The trace of a square operator from products with random vectors, with its standard error.

    $$ \operatorname{tr} A = \operatorname{tr} Q^T A Q
       + \mathbb{E}\, z^T (I - QQ^T) A (I - QQ^T) z, \qquad
       z \in \{-1, 1\}^n \text{ with independent random signs} $$

    Args:
        A: square operator (or matrix).
        method: "hutchinson" has no Q. "hutch++" takes for Q the range of A Z for some signs Z, as
            many as pay. "auto" begins with ten signs z: where the spread of z'A z shows that plain
            probes meet the target in about the cost of deflation it goes on with them, else it
            makes Q of these ten products and goes on as "hutch++"; both are unbiased and hold few
            vectors. "xtrace" lets each probe test the sketch of all others; "xnystrace" does so
            with one product a probe, for positive semidefinite operators: both are the most
            accurate where the spectrum decays fast, and hold every probe.
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol). This is
            checked at 16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the probes.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run goes on from it to the same bits.
        block_size: probes that are multiplied together. Alone (1) they may cost half, where v'A v
            is cheaper than A v, as for a Gauss-Newton matrix. Default 8, for n > 2^16 alone.
        memory_budget: bytes, or a text such as "1GB", for the vectors of the estimator. Without
            room for ten directions "auto" takes plain probes.

    Returns:
        Estimate(value, standard_error, products), and its `status` and 95% `interval`. Exact, with
        standard error 0, for n <= 10. Ctrl-C returns the estimate so far.

        The standard errors of "xtrace" and "xnystrace" allow for the dependence of their tests (see
        `hesse.estimators.leave_out`). Where the operator has a rank below the number of probes both
        are exact to rounding, and the error says no more than that.

    Cost: "hutchinson": a product a probe, 2 block_size vectors; the variance of a probe is
        2 (|A|_F^2 - sum_i a_ii^2) for symmetric A. "hutch++": 2 products and a vector a direction
        of Q, three more for each of ten while it grows (fewer for blocks of less than eight), then
        one product a probe. "xtrace": 2 products and 3 vectors a probe; "xnystrace": 1 product, 2
        vectors; both 2 vectors more if one probe is added at a time, 4 for blocks of eight. A
        checkpoint takes one product to know the operator by.

    Raises:
        HesseError: not square; NaN; a budget that is too small; a negative v'A v in "xnystrace".

    References: Hutchinson 1990, doi:10.1080/03610919008812866; Meyer, Musco, Musco & Woodruff 2021,
        doi:10.1137/1.9781611976496.16; Persson, Cortinovis & Kressner 2022,
        doi:10.1137/21M1447623; Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323.

    >>> trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    Estimate(value=6.0, standard_error=0.0, products=3)
    """
    A = aslinearoperator(A)
    A._check_square("trace")
    call = f"hesse.trace({A}, method={method!r})"
    check_choice("method", method, ["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"], call)
    arguments = Arguments(
        max_products=max_products,
        max_seconds=max_seconds,
        generator=generator,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        block_size=block_size,
        memory_budget=memory_budget,
    )
    target = Target(rtol, atol)
    sampler = Sampler.of(A, call, "trace", target, arguments, method=method)
    if sampler.is_small:
        return _exact(A)
    A.announce(target.least_samples(max_products))
    return _by_method(sampler, method)


def _by_method(sampler: Sampler[Target], method: TraceMethod) -> Estimate:
    if method == "hutchinson":
        return hutchinson(sampler)
    if method == "xtrace":
        return xtrace(sampler)
    if method == "xnystrace":
        sampler.A._check_symmetric(sampler.call)
        return xnystrace(sampler)
    if method == "hutch++":
        _check_enough(sampler)
    return TraceDeflation(sampler, always=method == "hutch++").estimate()


def _check_enough(sampler: Sampler) -> None:
    """One direction takes two products, and something must be left for the rest."""
    sampler.run.require(4, sampler.call, "method='hutch++' takes")


def _exact(A: LinearOperator) -> Estimate:
    value = float(A.to_dense().diagonal().sum(dtype=torch.float64))
    return Estimate(value, 0.0, A.shape[0])
