# SPDX-License-Identifier: Apache-2.0
"""The density of eigenvalues from random probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from hesse.boundary import public
from hesse.checkpoint import FilePath
from hesse.errors import check_count
from hesse.estimators.density import SpectralDensity
from hesse.estimators.density_run import DensityCriterion
from hesse.estimators.estimator_run import EstimatorRun
from hesse.estimators.exact import Columns, ExactValue, eigenvalues_of
from hesse.estimators.kernel_polynomial import KernelPolynomial
from hesse.estimators.lanczos_density import LanczosDensity
from hesse.estimators.vector_budget import Budget
from hesse.methods import find_method
from hesse.operators.algebra import LinearOperator
from hesse.operators.checks import check_symmetric
from hesse.operators.dense import aslinearoperator
from hesse.progress import Callback, Run


class DensityMethod(Protocol):
    """A method of `spectral_density`."""

    @property
    def run_key(self) -> Mapping[str, Any]:
        """What must be equal for a run to resume from a checkpoint."""
        ...

    @property
    def products_per_probe(self) -> int:
        """About how many products a probe takes."""
        ...

    def estimate_density(
        self, run: EstimatorRun[DensityCriterion], points: int, /
    ) -> SpectralDensity:
        """The density on so many points."""
        ...


_METHODS: dict[str, DensityMethod] = {
    method.name: method for method in (LanczosDensity(), KernelPolynomial())
}


@public("hesse.spectral_density({A}, method={method})")
def spectral_density(
    A: LinearOperator | Tensor,
    *,
    method: Literal["lanczos", "kernel-polynomial"] | DensityMethod = "lanczos",
    probes: int = 8,
    points: int = 1024,
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
       = \frac1n \operatorname{tr} g_\sigma(t I - A)
       \approx \frac{1}{nm} \sum_{j=1}^m z_j^T g_\sigma(t I - A) z_j $$

    with random vectors of signs z_j and a kernel g of width sigma.

    Args:
        A: symmetric operator (or matrix).
        method: `LanczosDensity(steps=64, bandwidth=None)` or "lanczos": Ritz values, smoothed by a
            Gaussian; sharp at isolated eigenvalues. `KernelPolynomial(degree=128)` or
            "kernel-polynomial": damped Chebyshev moments; smooth everywhere.
        probes: m, at least 2 for an error; with an rtol the number that it begins with.
        points: size of the grid, which spans the spectrum.
        rtol: draw probes until the integral of the standard error is at most this (the integral of
            the density is 1), checked at m, 3m/2, ... probes.
        max_products, max_seconds: stop in any case, the seconds within a block of probes too; with
            an rtol the former is by default what 100 m probes take.
        generator: of the signs.
        callback: called with the running `SpectralDensity`; a true result stops.
        progress: show a bar.
        checkpoint: a file to save the state in, within a block of probes too; a killed run resumes
            from it to the same bits, if those of the products are the same. The grid and the
            bandwidth may then differ, as the samples do not depend on them.
        block_size: how many probes advance together; default 8, or 1 for n > 2^16.
        memory_budget: bytes, or a text such as "1GB", for the vectors: fewer probes at a time.

    Returns:
        SpectralDensity, with a pointwise 95% band `interval`, a `status`, and `plot()`. Where the
        probes take n products or more (n <= 8192) it is that of all eigenvalues, from n products,
        with standard error 0 (at once if there is no limit of time, callback or checkpoint). Ctrl-C
        and the limits return what the complete probes give, or, before there are any, the steps so
        far.

    Cost: `steps` products a probe, or `degree` / 2; see the methods. A checkpoint takes one more
        product.

    Raises:
        HesseError: A is not symmetric; a budget that is too small; NaN.

    References: Lin, Saad & Yang 2016, doi:10.1137/130934283; Ghorbani, Krishnan & Xiao 2019,
        arXiv:1901.10159; Weisse, Wellein, Alvermann & Fehske 2006, doi:10.1103/RevModPhys.78.275.

    >>> density = spectral_density(torch.diag(torch.tensor([-1.0, 1.0, 3.0])))
    >>> round(density.moment(1), 4), round(density.moment(2), 4)    # mean of -1, 1, 3; of 1, 1, 9
    (1.0, 3.6667)
    """
    A = aslinearoperator(A)
    check_symmetric(A)
    chosen = find_method(method, _METHODS, "estimate_density")
    criterion = DensityCriterion(probes, rtol)
    points = check_count("points", points, 2)
    total = criterion.probes * chosen.products_per_probe
    if max_products is None and rtol is not None:
        max_products = 100 * total
    limits = Run(
        "spectral_density",
        max_products=max_products,
        max_seconds=max_seconds,
        callback=callback,
        progress=progress,
        checkpoint=checkpoint,
        total=total,
    )
    run = EstimatorRun.of(
        A,
        limits,
        criterion,
        generator=generator,
        block_size=block_size,
        memory_budget=memory_budget,
        exact=_eigenvalues,
        needs_matrix=True,
        probes=criterion.probes,
        **chosen.run_key,
    )
    A.announce(total)
    return chosen.estimate_density(run, points)


def _eigenvalues(columns: Columns) -> ExactValue:
    return ExactValue(*eigenvalues_of(columns))
