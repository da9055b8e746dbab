# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues from random probes: as many as asked for, or as a target needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import (
    ArgumentError,
    check_choice,
    check_count,
    check_positive,
    check_tolerances,
)
from hesse.estimators.arguments import Arguments, Budget
from hesse.estimators.density import SpectralDensity
from hesse.estimators.kernel_polynomial import KernelPolynomialDensity
from hesse.estimators.lanczos_density import LanczosDensity
from hesse.estimators.probed_density import Enough
from hesse.estimators.sampling import Sampler
from hesse.operators.algebra import LinearOperator
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback


@public("hesse.spectral_density({A})")
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
    checkpoint: FilePath = None,
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
            Chebyshev moments, smooth everywhere; see `hesse.estimators.kernel_polynomial`.
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
        checkpoint: a file to save the state in; a killed run goes on from it to the same bits. The
            grid and the bandwidth may be others then: they belong to the answer alone.
        block_size: probes that advance together; default 8, for n > 2^16 one.
        memory_budget: bytes, or a text such as "1GB", for the vectors: fewer probes at a time.

    Returns:
        SpectralDensity, with a pointwise 95% band `interval`, a `status`, and `plot()`. Ctrl-C
        returns what the probes so far give.

    Cost: steps products a probe (and 20 in all for "kernel-polynomial", which bound the spectrum);
        5 vectors for each probe that advances, 4 for a single one, six for "kernel-polynomial" (for
        n < 4096, where they are short, as many more as there are steps). A checkpoint takes one
        more product.

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
    probes, steps = (check_count(*each, 1, call) for each in (("probes", probes), ("steps", steps)))
    points = check_count("points", points, 2, call)
    if rtol is not None:
        check_tolerances(call, rtol=rtol)
    _check_bandwidth(method, bandwidth, call)
    if max_products is None and rtol is not None:
        max_products = 100 * probes * steps
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
    enough, total = Enough(probes, rtol), probes * steps
    question = {"method": method, "probes": probes, "steps": steps}
    sampler = Sampler.of(A, call, "spectral_density", enough, arguments, total=total, **question)
    A.announce(total)
    if method == "lanczos":
        return LanczosDensity(sampler, steps, points, bandwidth).density()
    return KernelPolynomialDensity(sampler, steps, points).density()


def _check_bandwidth(method: str, bandwidth: float | None, call: str) -> None:
    if bandwidth is None:
        return
    check_positive(call, bandwidth=bandwidth)
    if method != "lanczos":
        raise ArgumentError(
            call,
            expected="no bandwidth: that of kernel polynomials follows from their degree",
            got=f"bandwidth={bandwidth}",
            remedy="Choose steps = pi * (range of the spectrum) / (4 * bandwidth).",
        )
