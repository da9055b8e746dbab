# SPDX-License-Identifier: Apache-2.0
"""The trace from products with random vectors."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

import torch

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.estimators.estimate import Estimate
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import trace_of
from hesse.estimators.hutchinson import Hutchinson
from hesse.estimators.hutchpp import AutoTrace, HutchPP
from hesse.estimators.structured import known_trace
from hesse.estimators.tolerance import FIRST_CHECK, Tolerance
from hesse.estimators.vector_budget import Budget
from hesse.estimators.xnystrace import XNysTrace
from hesse.estimators.xtrace import XTrace
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_square
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


class TraceMethod(Protocol):
    """A method of `trace`."""

    name: ClassVar[str]
    """What a checkpoint knows it by."""

    def estimate_trace(self, run: EstimatorRun, /) -> Estimate:
        """The estimate."""
        ...


_METHODS: dict[str, TraceMethod] = {
    method.name: method for method in (AutoTrace(), Hutchinson(), HutchPP(), XTrace(), XNysTrace())
}


@public("hesse.trace({A}, method={method})")
def trace(
    A: LinearOperator | torch.Tensor,
    *,
    method: Literal["auto", "hutchinson", "hutch++", "xtrace", "xnystrace"] | TraceMethod = "auto",
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
        method: `Hutchinson()` or "hutchinson" (no Q), `HutchPP()` or "hutch++" (Q spans the range
            of A on a few probes), `XTrace()` or "xtrace", `XNysTrace()` or "xnystrace" (each probe
            tests the sketch of all others; the most accurate where the spectrum decays fast, but
            they hold every probe). "auto" takes ten plain probes; if their spread shows that plain
            probes meet the tolerance at about the cost of deflation it continues with them, else it
            makes Q of these ten products and continues as "hutch++". Unbiased, and few vectors.
        rtol, atol: stop when the standard error is at most max(rtol |estimate|, atol). This is
            checked at 16, 24, 36, ... probes.
        max_products, max_seconds: stop in any case.
        generator: of the probes.
        callback: called with the running `Estimate`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in; a killed run resumes from it to the same bits.
        block_size: how many probes are multiplied together. Blocks of 1 may take half the time
            where v'A v is cheaper than A v, as for a Gauss-Newton matrix. Default 8, or 1 for
            n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the vectors of the estimator. Without
            room for ten directions "auto" takes plain probes.

    Returns:
        Estimate(value, standard_error, products), with `status` and a 95% `interval`. Exact, with
        standard error 0, for n <= 10; "auto" is exact for n <= 16, and takes the n products with
        unit vectors as soon as the spread of the probes shows that the tolerance needs as many.
        Ctrl-C returns the estimate so far.

    Cost: see the methods. A checkpoint takes one product, to recognise the operator.

    Raises:
        HesseError: not square; NaN; a budget that is too small; a negative v'A v in "xnystrace".

    References: Hutchinson 1990, doi:10.1080/03610919008812866; Meyer, Musco, Musco & Woodruff 2021,
        doi:10.1137/1.9781611976496.16; Persson, Cortinovis & Kressner 2022,
        doi:10.1137/21M1447623; Epperly, Tropp & Webber 2024, doi:10.1137/23M1548323.

    >>> trace(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    Estimate(value=6.0, standard_error=0.0, products=3)
    """
    A = aslinearoperator(A)
    check_square(A)
    chosen = find_method(method, _METHODS, "estimate_trace")
    limits = Run(
        "trace",
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
        exact=trace_of if chosen.name == AutoTrace.name else None,
        method=chosen.name,
    )
    known = known_trace(A) if run.exact is not None else None
    if known is not None:
        return known
    if run.is_small or run.starts_exact(FIRST_CHECK):
        return run.of_all_columns(trace_of)
    A.announce(run.criterion.min_samples(max_products))
    return chosen.estimate_trace(run)
