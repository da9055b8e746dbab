# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues from random probes: as many as asked for, or as a target needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.errors import ArgumentError, Status, check_choice
from hesse.estimators.arguments import (
    Budget,
    block_size_of,
    too_small,
    vectors_in,
)
from hesse.estimators.density import SpectralDensity
from hesse.estimators.kernel_polynomial import KernelPolynomialDensity
from hesse.estimators.lanczos_density import LanczosDensity
from hesse.estimators.probes import signs
from hesse.estimators.sampling import next_check
from hesse.operators.base import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


def spectral_density(
    A: LinearOperator | Tensor,
    *,
    method: Literal["lanczos", "kernel-polynomial"] = "lanczos",
    probes: int = 8,
    steps: int = 64,
    points: int = 1024,
    bandwidth: float | None = None,
    rtol: float | None = None,
    max_products: int | None = None,
    max_seconds: float | None = None,
    generator: torch.Generator | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    block_size: int | None = None,
    memory_budget: Budget = None,
) -> SpectralDensity:
    r"""The density of the eigenvalues of a symmetric operator, smoothed, with its uncertainty.

    $$ \phi_\sigma(t) = \frac1n \sum_{i=1}^n g_\sigma(t - \lambda_i)
       \approx \frac1m \sum_{j=1}^m \sum_k w_{jk}\, g_\sigma(t - \theta_{jk}) $$

    with theta_jk the Ritz values and w_jk the squared first components of the eigenvectors of the
    Lanczos matrix started from the j-th random vector of signs, and g a Gaussian of width sigma.

    Args:
        A: symmetric operator (or matrix).
        method: "lanczos", as above: sharp at isolated eigenvalues. "kernel-polynomial": damped
            Chebyshev moments, which keep no basis; see `hesse.estimators.kernel_polynomial`.
        probes: m, at least 2 for an error; with an rtol the number that it begins with.
        steps: Lanczos steps a probe, or half the degree of the polynomials.
        points: size of the grid, which spans the Ritz values and four bandwidths beyond.
        bandwidth: sigma, of "lanczos"; default one hundredth of the range of the Ritz values, but
            not below one step's share of it: what is narrower the quadrature does not resolve, and
            the band does not tell.
        rtol: take probes until the integral of the standard error is at most this (that of the
            density is 1), checked at m, 3m/2, ...
        max_products, max_seconds: stop in any case; with an rtol the former is 100 steps m unless
            given.
        generator: of the signs.
        callback: called with the running `SpectralDensity`; a true result stops.
        progress: show a bar.
        block_size: probes that advance together; default 8, for n > 2^16 one.
        memory_budget: bytes, or a text such as "1GB", for the vectors: fewer probes at a time.

    Returns:
        SpectralDensity, with a pointwise 95% band `interval`, a `status`, and `plot()`. Ctrl-C
        returns what the probes so far give.

    Cost: steps products a probe (and 20 in all for "kernel-polynomial", which bound the spectrum);
        steps + 1 vectors for each probe that advances (four for "kernel-polynomial").

    Raises:
        HesseError: A is not symmetric; a budget that is too small; NaN.

    References: Lin, Saad & Yang 2016, doi:10.1137/130934283; Ghorbani, Krishnan & Xiao 2019,
        arXiv:1901.10159; Weisse, Wellein, Alvermann & Fehske 2006, doi:10.1103/RevModPhys.78.275.

    >>> density = spectral_density(torch.diag(torch.tensor([-1.0, 1.0, 3.0])))
    >>> round(density.moment(1), 4), round(density.moment(2), 4)    # mean of -1, 1, 3; of 1, 1, 9
    (1.0, 3.6667)
    """
    A = aslinearoperator(A)
    call = f"hesse.spectral_density({A}, method={method!r})"
    A._check_symmetric(call)
    check_choice("method", method, ["lanczos", "kernel-polynomial"], call)
    _check_arguments(method, probes, steps, bandwidth, call)
    block = block_size_of(A, block_size, call)
    if max_products is None and rtol is not None:
        max_products = 100 * probes * steps
    limits = Run(
        "spectral density",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        total=probes * steps,
    )
    if method == "lanczos":
        depth = min(steps, A.shape[0])
        state = LanczosDensity(A, depth, points, bandwidth, block, call)
    else:
        state = KernelPolynomialDensity(A, steps, points, block, call)
    A.expect(probes * steps)
    together = min(block, vectors_in(A, memory_budget, call) // state.held)
    if together < 1:
        too_small(A, state.held, 0, f"one probe of {steps} steps", call)
    return _sample(state, limits, probes, rtol, together, generator)


def _sample(
    state: LanczosDensity | KernelPolynomialDensity,
    run: Run,
    probes: int,
    rtol: float | None,
    together: int,
    generator: torch.Generator | None,
) -> SpectralDensity:
    """Take probes until there are enough."""
    with run:
        while run.status is Status.UNFINISHED:
            room = int(min(run.max_products - state.products, 1 << 62)) // state.cost
            k = min(together, room, next_check(state.count, probes) - state.count)
            if k < 1:
                run.status = Status.MAX_PRODUCTS
                break
            state.take(signs(state.A, k, generator))
            density = state.density(run.status)
            run.after_step(density)
            checked = state.count == next_check(state.count - 1, probes)
            if run.status is not Status.STOPPED and checked and _enough(density, rtol):
                run.status = Status.CONVERGED
    return _result(state, run)


def _enough(density: SpectralDensity, rtol: float | None) -> bool:
    return rtol is None or density.error <= rtol


def _result(state: LanczosDensity | KernelPolynomialDensity, run: Run) -> SpectralDensity:
    if state.count:
        return state.density(run.status)
    if run.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    raise ArgumentError(
        state.call,
        expected=f"max_products >= {state.cost}, which one probe takes",
        got=run.status.value,
        remedy="Raise it, or take fewer steps.",
    )


def _check_arguments(
    method: str, probes: int, steps: int, bandwidth: float | None, call: str
) -> None:
    if probes < 1 or steps < 1:
        raise ArgumentError(
            call,
            expected="probes >= 1 and steps >= 1",
            got=f"probes={probes}, steps={steps}",
            remedy="Leave them out for 8 probes of 64 steps.",
        )
    if method != "lanczos" and bandwidth is not None:
        raise ArgumentError(
            call,
            expected="no bandwidth: that of kernel polynomials follows from their degree",
            got=f"bandwidth={bandwidth}",
            remedy="Choose steps = pi * (range of the spectrum) / (4 * bandwidth).",
        )
