"""The ten largest eigenvalues, each to a residual of a thousandth of it.

A residual bounds the error, which is smaller: about its square over the gap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

import hesse
from benchmarks.problem import Problem
from benchmarks.spectra.exact import Exact
from benchmarks.spectra.job import Answer, Job, Subject
from benchmarks.spectra.peers import (
    curvlinops_operator,
    eigenthings_operator,
    pyhessian_operator,
)
from benchmarks.spectra.tuning import SEEDS, first
from hesse.testing import CountingOperator

K, RTOL = 10, 1e-3
STEPS = (20, 30, 40, 50, 60, 80, 100)

NOTE = """\
Hesse and ARPACK stop by residuals of 1e-3 |eigenvalue|; Hesse's products include those that look
for a missed eigenvalue and the one that verifies the residuals, and of the second row only the
latter. hessian-eigenthings takes a fixed number of Lanczos steps, here with reorthogonalization:
the smallest of {grid} at which its own flags say converged to
1e-3 for three other starts, which was {steps}. PyHessian's power iteration has its defaults, which
stop it at changes of 1e-3 or after 100 products for each eigenvalue."""


def job(problem: Problem, exact: Exact) -> Job:
    """hesse.eigsh and its peers."""
    values, steps = exact.largest(K), _enough_steps(problem)
    return Job(
        "eigenvalues",
        f"The {K} largest eigenvalues",
        [
            Subject("Hesse", "eigsh", lambda seed: _hesse(problem, seed, True)),
            Subject("Hesse", "eigsh, search off", lambda seed: _hesse(problem, seed, False)),
            Subject("SciPy", "ARPACK on H.to_scipy()", lambda seed: _scipy(problem, seed)),
            Subject("curvlinops", "with ARPACK", lambda seed: _curvlinops(problem, seed)),
            Subject(
                "hessian-eigenthings", "lanczos", lambda seed: _eigenthings(problem, steps, seed)
            ),
            Subject("PyHessian", "eigenvalues", lambda seed: _pyhessian(problem, seed)),
        ],
        error=lambda found: float(((found.double().sort().values - values) / values).abs().max()),
        target=RTOL,
        note=NOTE.format(grid=", ".join(map(str, STEPS)), steps=steps),
    )


def _hesse(problem: Problem, seed: int, search: bool) -> Answer:
    H = hesse.hessian_operator(problem.f, problem.params)
    generator = torch.Generator().manual_seed(seed)
    method = hesse.Lanczos(search_missed=search)
    pairs = hesse.eigsh(H, K, method=method, rtol=RTOL, generator=generator)
    return Answer(pairs.values, pairs.products)


def _scipy(problem: Problem, seed: int) -> Answer:
    H = CountingOperator(hesse.hessian_operator(problem.f, problem.params))
    return Answer(_arpack(H.to_scipy(), seed), H.products)


def _curvlinops(problem: Problem, seed: int) -> Answer:
    H, count = curvlinops_operator(problem, "Hessian")
    return Answer(_arpack(H.to_scipy(np.float32), seed), count.products)


def _arpack(H: scipy.sparse.linalg.LinearOperator, seed: int) -> Tensor:
    start = np.random.default_rng(seed).standard_normal(H.shape[0]).astype(np.float32)
    values, _ = scipy.sparse.linalg.eigsh(H, K, which="LA", tol=RTOL, v0=start)
    return torch.from_numpy(values)


def _eigenthings(problem: Problem, steps: int, seed: int) -> Answer:
    H, count = eigenthings_operator(problem)
    return Answer(_lanczos(H, steps, seed).eigenvalues, count.products)


def _lanczos(A: Any, steps: int, seed: int) -> Any:
    import hessian_eigenthings as eigenthings

    return eigenthings.lanczos(
        A, k=K, max_iter=steps, tol=RTOL, reorthogonalize=True, which="LA", seed=seed
    )


def _enough_steps(problem: Problem) -> int:
    import hessian_eigenthings as eigenthings

    H = hesse.hessian_operator(problem.f, problem.params)
    A = eigenthings.LambdaOperator(H.matvec, problem.n)
    return first(
        STEPS, lambda steps: all(_lanczos(A, steps, seed).converged.all() for seed in SEEDS)
    )


def _pyhessian(problem: Problem, seed: int) -> Answer:
    torch.manual_seed(seed)
    with pyhessian_operator(problem) as (H, count):
        return Answer(torch.tensor(H.eigenvalues(top_n=K)[0]), count.products)
