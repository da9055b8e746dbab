# SPDX-License-Identifier: Apache-2.0
"""Every kind of curvature matrix in every place that takes a matrix, against its dense form."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

import hesse
from hesse.errors import HesseError, Status
from hesse.operators.algebra import LinearOperator
from hesse.testing import check_operator

DOUBLE = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def risk() -> hesse.Risk:
    """A classifier on two batches of different sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(9, 3, generator=seeded(1), dtype=DOUBLE)
    y = torch.randint(0, 3, (9,), generator=seeded(2))
    return hesse.Risk(model, nn.CrossEntropyLoss(), [(x[:4], y[:4]), (x[4:], y[4:])])


def chain(x: torch.Tensor) -> torch.Tensor:
    return ((x[1:] - x[:-1] ** 2) ** 2).sum() + 2.0 * (x * x).sum()


RISK = risk()
N = sum(p.numel() for p in RISK.params.values())
POINT = torch.linspace(0.1, 0.6, 20, dtype=DOUBLE)


def definite(n: int, seed: int = 0) -> torch.Tensor:
    M = torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE)
    return M @ M.T / n + torch.eye(n, dtype=DOUBLE)


def low_rank(n: int) -> LinearOperator:
    return hesse.low_rank_operator(torch.randn(n, 2, generator=seeded(3), dtype=DOUBLE), ONES[:2])


ONES = torch.ones(N, dtype=DOUBLE)
SEMIDEFINITE: dict[str, Callable[[], LinearOperator]] = {
    "Gauss-Newton": lambda: hesse.ggn_operator(RISK),
    "Fisher, exact": lambda: hesse.fisher_operator(RISK, RISK.params),
    "Fisher, sampled": lambda: hesse.fisher_operator(
        RISK, RISK.params, "sampled", samples=2, generator=seeded()
    ),
    "Fisher, empirical": lambda: hesse.fisher_operator(RISK, RISK.params, "empirical"),
    "gradient covariance": lambda: hesse.gradient_covariance_operator(RISK, RISK.params),
    "J S J'": lambda: hesse.ntk_operator(RISK),
    "K-FAC": lambda: hesse.kfac_operator(RISK, RISK.params),
    "EK-FAC": lambda: hesse.ekfac_operator(RISK, RISK.params),
    "low rank": lambda: low_rank(N),
    "low rank, of eigenpairs": lambda: hesse.low_rank_operator(
        hesse.eigsh(hesse.ggn_operator(RISK), 4, generator=seeded())
    ),
    "Nystrom": lambda: hesse.nystrom_operator(
        hesse.ggn_operator(RISK), 5, sketch_size=9, generator=seeded()
    ),
    "gradient covariance, weighted": lambda: hesse.gradient_covariance_operator(
        RISK.weighted(torch.linspace(0.0, 2.0, 9, dtype=DOUBLE)), RISK.params
    ),
}


def damped(make: Callable[[], LinearOperator]) -> LinearOperator:
    A = make()
    return A + 0.2 * hesse.identity_operator(A.shape[0])


SQUARE: dict[str, Callable[[], LinearOperator]] = {
    **{f"{name} + c I": partial(damped, make) for name, make in SEMIDEFINITE.items()},
    "Hessian + c I": lambda: hesse.hessian_operator(RISK) + 3.0 * hesse.identity_operator(N),
    "sparse Hessian": lambda: hesse.sparse_hessian_operator(chain, POINT),
    "diagonal": lambda: hesse.diagonal_operator(1.0 + ONES.cumsum(0) / N),
    "identity": lambda: hesse.identity_operator(N, DOUBLE),
    "dense": lambda: hesse.dense_operator(definite(12)),
    "block-diagonal, a list": lambda: hesse.block_diagonal_operator([definite(3), definite(5)]),
    "block-diagonal, a dict": lambda: hesse.block_diagonal_operator(
        {"a": definite(3), "b": hesse.diagonal_operator(ONES[:4])}
    ),
    "Kronecker": lambda: hesse.kronecker_operator(definite(3), definite(4)),
    "Kronecker, nested": lambda: hesse.kronecker_operator(
        definite(2), hesse.kronecker_operator(definite(2), definite(3))
    ),
    "low rank + D": lambda: low_rank(N) + hesse.diagonal_operator(1.0 + ONES.cumsum(0)),
    "inverse": lambda: hesse.inverse_operator(damped(lambda: hesse.ggn_operator(RISK))),
    "sum": lambda: hesse.ggn_operator(RISK) + hesse.kfac_operator(RISK, damping=0.3),
    "scaled": lambda: 2.5 * hesse.kfac_operator(RISK, damping=0.3),
    "product": lambda: (D := hesse.diagonal_operator(1.0 + ONES.cumsum(0) / N))
    @ damped(lambda: hesse.ggn_operator(RISK))
    @ D,
    "block": lambda: damped(lambda: hesse.ggn_operator(RISK)).block("0"),
    "block of a pattern": lambda: hesse.kfac_operator(RISK, damping=0.3).block("*.weight"),
}  # fmt: skip


@pytest.fixture(params=SQUARE, scope="module")
def pair(request) -> tuple[LinearOperator, torch.Tensor]:
    """An operator, definite, and its matrix."""
    A = SQUARE[request.param]()
    return A, A.to_dense()


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-8) -> None:
    assert float((ours - theirs).norm()) <= tolerance * max(float(theirs.norm()), 1e-300)


def vector(A: LinearOperator, seed: int = 5) -> torch.Tensor:
    return torch.randn(A.shape[1], generator=seeded(seed), dtype=DOUBLE)


@pytest.mark.fast_cases(4)
def test_products_and_conversions(pair):
    A, M = pair
    check_operator(A)
    v, block = vector(A), torch.stack([vector(A, 6), vector(A, 7)], 1)
    close(A @ v, M @ v)
    close(A @ block, M @ block)
    close(A.domain.flatten(A @ A.domain.unflatten(v)), M @ v)
    close(
        torch.from_numpy(A.to_scipy() @ v.numpy()) if hasattr(A.to_scipy(), "dot") else M @ v, M @ v
    )
    assert "\n\n" not in repr(A)


@pytest.mark.some_cases(70)
@pytest.mark.fast_cases(50)
@pytest.mark.parametrize("method", ["auto", "cg", "minres", "gmres"])
def test_systems(pair, method):
    A, M = pair
    b = vector(A)
    solution = hesse.solve(A, b, method, rtol=1e-11)
    assert solution.converged, solution.status
    close(solution.x, torch.linalg.solve(M, b))
    if method == "auto" and A._inverse() is not None:
        assert solution.method == "direct"


def test_inverses_and_preconditioners(pair):
    A, M = pair
    v = vector(A)
    inverse = hesse.inverse_operator(A)
    close(inverse @ v, torch.linalg.solve(M, v), 1e-6)
    assert hesse.solve(A, v, "cg", preconditioner=inverse, rtol=1e-8).converged


def test_influences(pair):
    A, M = pair
    if A.shape[0] != N:
        return
    each, params = RISK.per_example, RISK.params
    G = torch.cat(list(each.gradients(params)))
    got = hesse.apps.influence(RISK, params, RISK, curvature=A, damping=0.1, rtol=1e-11)
    exact = torch.linalg.solve(M + 0.1 * torch.eye(N, dtype=DOUBLE), G.T)
    close(got.scores, G @ exact / len(each))


def test_eigenvalues_and_norms(pair):
    A, M = pair
    w = torch.linalg.eigvalsh(M)
    close(hesse.eigsh(A, 2, rtol=1e-10, generator=seeded()).values.double(), w[-2:])
    close(torch.tensor(hesse.norm(A, 2, rtol=1e-9, generator=seeded()).value, dtype=DOUBLE), w[-1])
    estimate = hesse.norm(A, generator=seeded())
    close(torch.tensor(estimate.value, dtype=DOUBLE), M.norm(), 0.05 if estimate.products else 1e-8)


@pytest.mark.some_cases(56)
@pytest.mark.parametrize("name", ["trace", "diagonal", "logdet"])
def test_estimates(pair, name):
    A, M = pair
    exact = {"trace": M.trace(), "diagonal": M.diagonal(), "logdet": torch.logdet(M)}[name]
    estimate = getattr(hesse, name)(A, generator=seeded())
    value = torch.as_tensor(estimate.value, dtype=DOUBLE)
    if estimate.products == 0 or estimate.products >= A.shape[0]:
        assert float((value - exact).norm()) <= 1e-8 * max(1.0, float(exact.norm()))
    else:
        assert float((value - exact).norm()) <= 0.05 * float(exact.norm())
    if A.is_structured and name == "logdet" and A._logdet() is not None:
        assert estimate.products == 0


def test_functions_and_densities(pair):
    A, M = pair
    w, Q = torch.linalg.eigh(M)
    v = vector(A)
    root = hesse.matrix_function("sqrt", A, v, rtol=1e-10).value
    close(root, Q @ (w.sqrt() * (Q.T @ v)), 1e-7)
    density = hesse.spectral_density(A, generator=seeded())
    assert density.moment(1) == pytest.approx(float(w.mean()), rel=0.05)


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", SEMIDEFINITE)
def test_traces_of_singular_matrices(name):
    A = SEMIDEFINITE[name]()
    value = hesse.trace(A, rtol=1e-3, generator=seeded()).value
    assert value == pytest.approx(float(A.to_dense().trace()), rel=0.01)


def test_a_matrix_of_low_rank_has_no_determinant():
    with pytest.raises(HesseError, match="positive definite"):
        hesse.logdet(low_rank(N))


def test_a_jacobian_takes_part_in_least_squares_and_singular_values():
    model, x = RISK.model, torch.randn(5, 3, generator=seeded(1), dtype=DOUBLE)
    J = hesse.jacobian_operator(lambda p: torch.func.functional_call(model, p, (x,)), RISK.params)
    check_operator(J)
    M = J.to_dense()
    close(hesse.svds(J, 2, generator=seeded()).S.double(), torch.linalg.svdvals(M)[:2])
    close(
        torch.tensor(hesse.norm(J, 2, rtol=1e-9).value, dtype=DOUBLE),
        torch.linalg.matrix_norm(M, 2),
    )
    u = torch.randn(15, generator=seeded(4), dtype=DOUBLE)
    solution = hesse.solve(J, u, "lsmr", rtol=1e-10)
    assert solution.status is Status.CONVERGED
    assert float((M.T @ (M @ solution.x - u)).norm()) <= 1e-6 * float(u.norm())
