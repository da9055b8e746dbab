"""The density of eigenvalues from two probes of eighty Lanczos steps."""

from __future__ import annotations

import math

import torch

import hesse
from benchmarks.problem import Problem
from benchmarks.spectra.exact import Exact
from benchmarks.spectra.job import Answer, Job, Subject
from benchmarks.spectra.peers import (
    curvlinops_operator,
    eigenthings_operator,
    pyhessian_operator,
)

PROBES, STEPS = 2, 80

NOTE = """\
All take the same number of probes and steps; curvlinops 3 first bounds the spectrum by ARPACK,
which takes products too. `error` is that of the mean eigenvalue, tr H / n, by the density that is
returned (by its nodes and weights where it has them): the chance error of two probes, which is the
same for all, and whatever a method adds to it; no target is set."""


def job(problem: Problem, exact: Exact) -> Job:
    """hesse.spectral_density and its peers."""
    mean = exact.trace / problem.n
    return Job(
        "density",
        f"The spectral density, {PROBES} probes of {STEPS} Lanczos steps",
        [
            Subject("Hesse", "spectral_density", lambda seed: _hesse(problem, seed)),
            Subject(
                "curvlinops",
                "LanczosApproximateSpectrumCached",
                lambda seed: _curvlinops(problem, seed),
            ),
            Subject(
                "hessian-eigenthings", "spectral_density", lambda seed: _eigenthings(problem, seed)
            ),
            Subject("PyHessian", "density", lambda seed: _pyhessian(problem, seed)),
        ],
        error=lambda found: abs(found - mean) / abs(mean),
        target=math.inf,
        note=NOTE,
    )


def _hesse(problem: Problem, seed: int) -> Answer:
    H = hesse.hessian_operator(problem.f, problem.params)
    generator = torch.Generator().manual_seed(seed)
    method = hesse.LanczosDensity(steps=STEPS)
    density = hesse.spectral_density(H, method=method, probes=PROBES, generator=generator)
    return Answer(density.moment(1), density.products)


def _curvlinops(problem: Problem, seed: int) -> Answer:
    import curvlinops

    torch.manual_seed(seed)
    H, count = curvlinops_operator(problem, "Hessian")
    spectrum = curvlinops.LanczosApproximateSpectrumCached(H, STEPS)
    grid, density = (t.double() for t in spectrum.approximate_spectrum(PROBES))
    return Answer(float((grid * density).sum() / density.sum()), count.products)


def _eigenthings(problem: Problem, seed: int) -> Answer:
    import hessian_eigenthings as eigenthings

    H, count = eigenthings_operator(problem)
    # Probe i is drawn from seed + i.
    found = eigenthings.spectral_density(
        H, num_runs=PROBES, lanczos_steps=STEPS, seed=PROBES * seed
    )
    moment = (found.raw_weights * found.raw_eigenvalues).double().nansum(dim=1).mean()
    return Answer(float(moment), count.products)


def _pyhessian(problem: Problem, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian_operator(problem) as (H, count):
        nodes, weights = H.density(iter=STEPS, n_v=PROBES)
        return Answer(
            float((torch.tensor(nodes) * torch.tensor(weights)).sum(1).mean()), count.products
        )
