"""Standard errors beside statsmodels: relative differences, and a profile interval beside Wald's.

Logit, Poisson and probit regression, 500 observations, 6 parameters, clusters of ten. Without
statsmodels the reference is the dense formula.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import hesse
from hesse.apps import profile, standard_errors

LOSSES = {
    "logit": lambda eta, y: torch.nn.functional.softplus(eta) - y * eta,
    "poisson": lambda eta, y: eta.exp() - y * eta,
    "probit": lambda eta, y: -torch.special.log_ndtr((2 * y - 1) * eta),
}


def main(arguments: Sequence[str] = ()) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps statistics")
    parser.add_argument("--observations", type=int, default=500)
    parser.add_argument("--parameters", type=int, default=6)
    options = parser.parse_args(list(arguments))
    torch.set_default_dtype(torch.float64)
    n, k = options.observations, options.parameters
    g = torch.Generator().manual_seed(0)
    X = torch.randn(n, k, generator=g) @ (torch.eye(k) + 0.4)
    X[:, 0] = 1.0
    eta = X @ (0.4 * torch.randn(k, generator=g))
    uniform = torch.rand(n, generator=g)
    targets = {
        "logit": (eta.sigmoid() > uniform).double(),
        "poisson": torch.poisson(eta.exp(), generator=g),
        "probit": (torch.special.ndtr(eta) > uniform).double(),
    }
    clusters = torch.arange(n) // 10
    print("model     beta      se        HC0       cluster   seconds  profile of entry 2")
    for name, y in targets.items():
        row(name, X, y, clusters)


def row(name: str, X: Tensor, y: Tensor, clusters: Tensor) -> None:
    """One model: the largest relative differences."""
    start = time.process_time()

    def f(beta: Tensor) -> Tensor:
        return LOSSES[name](X @ beta, y)

    zero = torch.zeros(X.shape[1])
    beta = hesse.minimize(lambda b: f(b).sum(), zero, rtol=0.0, atol=1e-10).x
    ours = [standard_errors(f, beta, robust=r).standard_error for r in (None, "HC0", clusters)]
    seconds = time.process_time() - start
    if importlib.util.find_spec("statsmodels") is None:
        theirs = definition(f, beta, clusters)
    else:
        theirs = statsmodels(name, X, y, clusters)
    errors = [relative(a, b) for a, b in zip([beta, *ours], theirs, strict=True)]
    interval = profile(f, beta, 2)
    ends = f"[{interval.low:.4f}, {interval.high:.4f}], Wald [{interval.wald[0]:.4f}, "
    columns = "".join(f"{error:<10.1e}" for error in errors)
    print(f"{name:10}{columns}{seconds:<9.2f}{ends}{interval.wald[1]:.4f}]")


def relative(a: Tensor, b: Tensor) -> float:
    return float((a / b - 1).abs().max())


def statsmodels(name: str, X: Tensor, y: Tensor, clusters: Tensor) -> list[Tensor]:
    import statsmodels.api as sm  # pyright: ignore

    classes = {"logit": sm.Logit, "poisson": sm.Poisson, "probit": sm.Probit}
    model = classes[name](y.numpy(), X.numpy())
    options: dict[str, Any] = {"disp": 0, "tol": 1e-14, "maxiter": 200}
    plain = model.fit(**options)
    robust = model.fit(**options, cov_type="HC0")
    grouped = model.fit(**options, cov_type="cluster", cov_kwds={"groups": clusters.numpy()})
    return [torch.tensor(v) for v in (plain.params, plain.bse, robust.bse, grouped.bse)]


def definition(f: Any, beta: Tensor, clusters: Tensor) -> list[Tensor]:
    """By dense matrices."""
    n, k, groups = len(clusters), len(beta), int(clusters.max()) + 1
    V = torch.linalg.inv(torch.func.hessian(lambda b: f(b).sum())(beta))
    S = torch.autograd.functional.jacobian(f, beta)
    sums = torch.zeros(groups, k).index_add(0, clusters, S)
    factor = groups / (groups - 1) * (n - 1) / (n - k)
    covariances = [V, V @ S.T @ S @ V, factor * V @ sums.T @ sums @ V]
    return [beta, *(C.diagonal().sqrt() for C in covariances)]
