"""Linear systems, each by one method of Hesse and by SciPy's of the same name.

cg: the damped Gauss-Newton matrix G + damping I, for a step of Gauss and Newton. minres: the
shifted, indefinite Hessian. lsmr: a dense rectangular matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import scipy.sparse.linalg
import torch
from torch import Tensor

import hesse
from benchmarks import oracle
from benchmarks.models.seeded import normal
from benchmarks.problem import Problem
from benchmarks.spectra.exact import Exact
from benchmarks.spectra.job import Answer, Job, Subject
from benchmarks.spectra.peers import curvlinops_operator
from hesse.testing import CountingOperator

RTOL = 1e-3
DAMPING, SHIFT = 0.1, -5.0  # of the spectrum nine outliers stay above 5
ROWS, COLUMNS = 6000, 2000
MOST = 400  # iterations of cg and minres
TIGHTER = (1.0, 0.1, 0.01, 0.001)

NOTE = """\
`error` is |b - A x| / |b| in float64, by double backward; the target is 1e-3. SciPy is called with
rtol {rtol:.0e}{why}. Hesse's products include the one that recomputes the residual."""
WHY = ", the largest at which its answer meets the target: its rule is another"


def cg(problem: Problem, exact: Exact) -> Job:
    """(G + damping I) x = -gradient."""
    n, double = problem.n, problem.double()
    gradient, _ = oracle.hessian(double)
    b, product = -gradient.detach(), oracle.gauss_newton(double)

    def damped() -> hesse.LinearOperator:
        G = hesse.ggn_operator(problem.risk(), problem.params)
        return G + DAMPING * hesse.identity_operator(n)

    def of_curvlinops() -> tuple[Any, Callable[[], int]]:
        G, count = curvlinops_operator(problem, "GGN")
        identity = scipy.sparse.linalg.LinearOperator((n, n), matvec=lambda v: v, dtype=np.float32)
        return G.to_scipy(np.float32) + np.float32(DAMPING) * identity, lambda: count.products

    title = f"(G + {DAMPING} I) x = -gradient by conjugate gradients"
    return _job("cg", title, damped, b, lambda x: product(x) + DAMPING * x, of_curvlinops)


def minres(problem: Problem, exact: Exact) -> Job:
    """(H + shift I) x = -gradient."""
    n = problem.n
    gradient, product = oracle.hessian(problem.double())

    def shifted() -> hesse.LinearOperator:
        H = hesse.hessian_operator(problem.f, problem.params)
        return H + SHIFT * hesse.identity_operator(n)

    def of_curvlinops() -> tuple[Any, Callable[[], int]]:
        H, count = curvlinops_operator(problem, "Hessian")
        identity = scipy.sparse.linalg.LinearOperator((n, n), matvec=lambda v: v, dtype=np.float32)
        return H.to_scipy(np.float32) + np.float32(SHIFT) * identity, lambda: count.products

    title = f"(H - {-SHIFT} I) x = -gradient, indefinite, by minimal residuals"
    b = -gradient.detach()
    return _job("minres", title, shifted, b, lambda x: product(x) + SHIFT * x, of_curvlinops)


def lsmr(problem: Problem, exact: Exact) -> Job:
    """A x = b for a dense A with columns of norms from 1 to 10, b in its range."""
    matrix = normal(ROWS, COLUMNS) * torch.logspace(-1, 0, COLUMNS) / ROWS**0.5
    double = matrix.double()
    b = double @ normal(COLUMNS, seed=2).double()
    title = f"A x = b, A dense of {ROWS} x {COLUMNS}, by lsmr"
    return _job("lsmr", title, lambda: hesse.dense_operator(matrix), b, lambda x: double @ x, None)


def _job(
    method: Literal["cg", "minres", "lsmr"],
    title: str,
    operator: Callable[[], hesse.LinearOperator],
    b: Tensor,
    product: Callable[[Tensor], Tensor],
    curvlinops: Callable[[], tuple[Any, Callable[[], int]]] | None,
) -> Job:
    single = b.float()

    def error(x: Tensor) -> float:
        return float((b - product(x.double()).detach()).norm() / b.norm())

    def by_hesse(seed: int) -> Answer:
        most = None if method == "lsmr" else MOST
        solution = hesse.solve(operator(), single, method, rtol=RTOL, max_iterations=most)
        return Answer(solution.x, solution.products)

    def through_scipy(rtol: float) -> Answer:
        A = CountingOperator(operator())
        return Answer(_scipy(method, A.to_scipy(), single, rtol), A.products)

    def by_curvlinops(seed: int) -> Answer:
        assert curvlinops is not None
        A, products = curvlinops()
        return Answer(_scipy(method, A, single, rtol), products())

    rtol = _loosest((RTOL * t for t in TIGHTER), lambda r: error(through_scipy(r).value) <= RTOL)
    subjects = [
        Subject("Hesse", f"solve {method}", by_hesse),
        Subject("SciPy", f"{method} on A.to_scipy()", lambda _: through_scipy(rtol)),
    ]
    if curvlinops is not None:
        subjects.append(Subject("curvlinops", f"with SciPy's {method}", by_curvlinops))
    note = NOTE.format(rtol=rtol, why=WHY if rtol < RTOL else "")
    return Job(method, title, subjects, error, 1.05 * RTOL, note)


def _scipy(method: str, A: Any, b: Tensor, rtol: float) -> Tensor:
    if method == "lsmr":  # of a consistent system: |r| <= btol |b|
        return torch.from_numpy(
            scipy.sparse.linalg.lsmr(A, b.numpy(), atol=0.0, btol=rtol, conlim=0.0)[0]
        )
    return torch.from_numpy(
        getattr(scipy.sparse.linalg, method)(A, b.numpy(), rtol=rtol, maxiter=MOST)[0]
    )


def _loosest(tolerances: Iterable[float], good: Callable[[float], bool]) -> float:
    """The first that is good; the last if none is."""
    rtol = RTOL
    for rtol in tolerances:
        if good(rtol):
            break
    return rtol
