"""Tangent kernels: products with and without a preconditioner, and 10^5 x 10 rows.

Digits of scikit-learn, MLP 64-256-10 (n = 19,210, float64) at initialisation, 300 examples, ridge
1e-3 of the mean diagonal. Kernel ridge regression by conjugate gradients without a preconditioner,
with Nystrom's and with that of the trace kernel; products to set it up count. Every fit beside the
dense formula; the network trained on the same loss beside its linearisation. `--rows N` repeats the
fit with N inputs of 10 outputs each (float32): the matrix would have (10 N)^2 entries.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import hesse
from hesse.apps import alignment, linearised, ntk

from .influence import Digits, relative

N, C = 300, 10


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps ntk", description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="inputs; 0 leaves them out")
    parser.add_argument("--trained", action="store_true", help="also at a trained network")
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    digits = Digits()
    X, Y = digits.X[:N], one_hot(digits.y[:N], C).double()
    model = network()
    print(f"MLP 64-256-10 on {N} digits, at initialisation")
    kernel_ridge(model, digits, X, Y)
    if options.trained:
        train(model, X, Y)
        print("after training on the squared loss")
        kernel_ridge(model, digits, X, Y)
    if options.rows:
        many_rows(options.rows)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, C))


def kernel_ridge(model: nn.Module, digits: Digits, X: Tensor, Y: Tensor) -> None:
    """Products, errors and accuracy of each preconditioner; the trace kernel and its alignment."""
    J = jacobian(model, X)
    K = J @ J.T
    ridge = 1e-3 * float(K.diagonal().mean())
    test, labels = digits.X_test[:200], digits.y_test[:200]
    with torch.no_grad():
        r, f = (Y - model(X)).reshape(-1), model(test)
    alpha = torch.linalg.solve(K + ridge * torch.eye(len(K)), r)
    exact = f + (jacobian(model, test) @ (J.T @ alpha)).reshape(-1, C)
    print("  preconditioner  products  seconds  error of the change  test accuracy")
    for name in (None, "nystrom", "trace-kernel"):
        start, g = time.process_time(), torch.Generator().manual_seed(0)
        fit = linearised(model).fit(X, Y, ridge=ridge, preconditioner=name, generator=g)
        seconds = time.process_time() - start
        predicted = fit.predict(test)
        accuracy = float((predicted.argmax(1) == labels).double().mean())
        error = relative(predicted - f, exact - f)
        print(f"  {name!s:16}{fit.products:<10}{seconds:<9.1f}{error:<21.1e}{accuracy:.3f}")
    trace = torch.einsum("icjc->ij", K.reshape(N, C, N, C)) / C
    g = torch.Generator().manual_seed(0)
    one = ntk(model, x=X, trace=True, generator=g).to_dense()
    pairs = hesse.eigsh(ntk(model, x=X), 10, generator=g)
    top = torch.linalg.eigvalsh(K)[-10:]
    print(f"  trace kernel by one sign: {relative(one, trace):.2%} off;", end=" ")
    print(f"alignment {alignment(trace, Y).value:.3f};", end=" ")
    print(f"10 eigenvalues by {pairs.products} products, error {relative(pairs.values, top):.0e}")


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    params = {name: p.detach() for name, p in model.named_parameters()}
    one = torch.func.jacrev(lambda p, row: torch.func.functional_call(model, p, (row,)))
    leaves = torch.func.vmap(one, (None, 0))(params, x).values()
    return torch.cat([leaf.reshape(len(x) * C, -1) for leaf in leaves], 1)


def train(model: nn.Module, X: Tensor, Y: Tensor) -> None:
    """The network itself, by full-batch Newton-CG on the Gauss-Newton matrix."""
    risk = hesse.Risk(model, nn.MSELoss(), (X, Y), weight_decay=2e-5)
    found = hesse.minimize(
        risk, risk.params, "trust-cg", curvature="ggn", rtol=1e-5, max_iterations=60
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(found.x[name])


def many_rows(count: int) -> None:
    """More rows than a matrix can have: eigenvalues of the kernel, and kernel ridge regression."""
    single: dict = {"dtype": torch.float32}
    g = torch.Generator().manual_seed(0)
    x = torch.randn(count, 64, generator=g, **single) * torch.logspace(0, -2, 64, **single)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, **single), nn.Tanh(), nn.Linear(64, C, **single))
    y = torch.sin(2 * x[:, :C])
    K = ntk(model, x=x)
    rows, start = K.shape[0], time.process_time()
    pairs = hesse.eigsh(K, 3, generator=g)
    print(f"K of {rows:,} rows, float32, n = 4,810: 3 eigenvalues by {pairs.products}", end=" ")
    print(f"products, {time.process_time() - start:.0f} s")
    diagonal = float(hesse.trace(K, rtol=0.1, max_products=10, generator=g)) / rows
    start = time.process_time()
    fit = linearised(model).fit(x, y, ridge=1e-3 * diagonal, rtol=1e-3, generator=g)
    left = relative(fit.predict(x), y)
    print(f"  ridge regression in the space of the {fit.space}: {fit.products} products,", end=" ")
    print(f"{time.process_time() - start:.0f} s, relative error of the fit {left:.3f}")
