"""The trace to one per cent."""

from __future__ import annotations

import functools
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

RTOL = 0.01
MOST = 10_000  # products that Hesse may take

NOTE = """\
Hesse stops when its own estimate of the standard error is one per cent. Its peers have no such rule
(PyHessian's stops at the first small change, and is switched off by tol=0): they are given the
number of products that Hesse took with the same seed, or the next multiple of six or three. So what
there is to compare is the time, and the error: `error` is the root mean square over the
rounds, up to twice one per cent counts as reached. XTrace is not here: to one per cent it takes
hundreds of vectors, which it orthogonalises, and twice the products."""


def job(problem: Problem, exact: Exact) -> Job:
    """hesse.trace and its peers."""

    @functools.cache
    def most(seed: int) -> int:
        return _hesse(problem, seed).products

    return Job(
        "trace",
        "The trace to 1%",
        [
            Subject("Hesse", "trace", lambda seed: _hesse(problem, seed)),
            Subject(
                "curvlinops",
                "hutchpp",
                lambda seed: _curvlinops(problem, most(seed), seed),
            ),
            Subject(
                "hessian-eigenthings",
                "hutch++",
                lambda seed: _eigenthings(problem, most(seed), seed),
            ),
            Subject("PyHessian", "trace", lambda seed: _pyhessian(problem, most(seed), seed)),
        ],
        error=lambda found: abs(found - exact.trace) / abs(exact.trace),
        target=2 * RTOL,
        note=NOTE,
        before=most,
    )


def _hesse(problem: Problem, seed: int) -> Answer:
    H = hesse.hessian_operator(problem.f, problem.params)
    generator = torch.Generator().manual_seed(seed)
    estimate = hesse.trace(H, rtol=RTOL, max_products=MOST, generator=generator)
    return Answer(float(estimate), estimate.products)


def _curvlinops(problem: Problem, products: int, seed: int) -> Answer:
    import curvlinops

    torch.manual_seed(seed)
    H, count = curvlinops_operator(problem, "Hessian")
    estimate = curvlinops.hutchpp_trace(H, 6 * math.ceil(products / 6))
    return Answer(float(estimate), count.products)


def _eigenthings(problem: Problem, products: int, seed: int) -> Answer:
    import hessian_eigenthings as eigenthings

    H, count = eigenthings_operator(problem)
    found = eigenthings.trace(H, num_matvecs=3 * math.ceil(products / 3), seed=seed)
    return Answer(found.estimate, count.products)


def _pyhessian(problem: Problem, products: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian_operator(problem) as (H, count):
        samples = H.trace(maxIter=products, tol=0.0)
        return Answer(sum(samples) / len(samples), count.products)
