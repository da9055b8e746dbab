"""The diagonal from a given number of products."""

from __future__ import annotations

import math
from typing import Literal

import torch

from benchmarks.problem import Problem
from benchmarks.spectra.exact import Exact
from benchmarks.spectra.job import Answer, Job, Subject
from benchmarks.spectra.peers import curvlinops_operator
from hesse import diagonal, hessian_operator

PRODUCTS = 96

NOTE = f"""\
All take {PRODUCTS} products; `error` is |found - exact| / |exact|, in the 2-norm. No target is
set: of two methods that with the smaller error is the better one."""


def job(problem: Problem, exact: Exact) -> Job:
    """hesse.diagonal and its peers."""
    truth = exact.diagonal
    methods: list[Literal["auto", "xdiag", "hutchinson"]] = ["auto", "xdiag", "hutchinson"]
    return Job(
        "diagonal",
        f"The diagonal from {PRODUCTS} products",
        [
            *(
                Subject("Hesse", name, lambda seed, name=name: _hesse(problem, name, seed))
                for name in methods
            ),
            *(
                Subject(
                    "curvlinops", name, lambda seed, name=name: _curvlinops(problem, name, seed)
                )
                for name in ("xdiag", "hutchinson_diag")
            ),
        ],
        error=lambda found: float((found.double() - truth).norm() / truth.norm()),
        target=math.inf,
        note=NOTE,
    )


def _hesse(problem: Problem, method: Literal["auto", "xdiag", "hutchinson"], seed: int) -> Answer:
    H = hessian_operator(problem.f, problem.params)
    generator = torch.Generator().manual_seed(seed)
    found = diagonal(H, method=method, rtol=0.0, max_products=PRODUCTS, generator=generator)
    return Answer(found.value, found.products)


def _curvlinops(problem: Problem, method: str, seed: int) -> Answer:
    import curvlinops

    torch.manual_seed(seed)
    H, count = curvlinops_operator(problem, "Hessian")
    return Answer(getattr(curvlinops, method)(H, PRODUCTS), count.products)
