"""The trace to one per cent."""

from __future__ import annotations

import functools
import math
from typing import Literal

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

Method = Literal["auto", "xtrace"]
RTOL = 0.01
MOST = 10_000  # products that Hesse may take

NOTE = """\
Hesse stops when its own estimate of the standard error is one per cent. Its peers have no such rule
(PyHessian's stops at the first small change, and is switched off by tol=0): they are given the
number of products that Hesse took with the same seed, by its default or by xtrace (up to a multiple
of six, which curvlinops asks for). So what there is to compare is the time, and the error: `error`
is the root mean square over the rounds, up to twice one per cent counts as reached."""


def job(problem: Problem, exact: Exact) -> Job:
    """hesse.trace and its peers."""

    @functools.cache
    def most(method: Method, seed: int) -> int:
        return _hesse(problem, method, seed).products

    return Job(
        "trace",
        "The trace to 1%",
        [
            Subject("Hesse", "auto", lambda seed: _hesse(problem, "auto", seed)),
            Subject("Hesse", "xtrace", lambda seed: _hesse(problem, "xtrace", seed)),
            Subject(
                "curvlinops",
                "hutchpp",
                lambda seed: _curvlinops(problem, "hutchpp", most("auto", seed), seed),
            ),
            Subject(
                "curvlinops",
                "xtrace",
                lambda seed: _curvlinops(problem, "xtrace", most("xtrace", seed), seed),
            ),
            Subject(
                "hessian-eigenthings",
                "hutch++",
                lambda seed: _eigenthings(problem, most("auto", seed), seed),
            ),
            Subject(
                "PyHessian", "trace", lambda seed: _pyhessian(problem, most("auto", seed), seed)
            ),
        ],
        error=lambda found: abs(found - exact.trace) / abs(exact.trace),
        target=2 * RTOL,
        note=NOTE,
        before=lambda seed: (most("auto", seed), most("xtrace", seed)),
    )


def _hesse(problem: Problem, method: Method, seed: int) -> Answer:
    H = hesse.hessian_operator(problem.f, problem.params)
    generator = torch.Generator().manual_seed(seed)
    estimate = hesse.trace(H, method=method, rtol=RTOL, max_products=MOST, generator=generator)
    return Answer(float(estimate), estimate.products)


def _curvlinops(
    problem: Problem, method: Literal["hutchpp", "xtrace"], products: int, seed: int
) -> Answer:
    import curvlinops

    torch.manual_seed(seed)
    H, count = curvlinops_operator(problem, "Hessian")
    estimate = curvlinops.hutchpp_trace if method == "hutchpp" else curvlinops.xtrace
    return Answer(float(estimate(H, 6 * math.ceil(products / 6))), count.products)


def _eigenthings(problem: Problem, products: int, seed: int) -> Answer:
    import hessian_eigenthings as eigenthings

    H, count = eigenthings_operator(problem)
    found = eigenthings.trace(H, num_matvecs=products, seed=seed)
    return Answer(found.estimate, count.products)


def _pyhessian(problem: Problem, products: int, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian_operator(problem) as (H, count):
        samples = H.trace(maxIter=products, tol=0.0)
        return Answer(sum(samples) / len(samples), count.products)
