"""Laplace's approximation beside laplace-torch; the coverage of evidence intervals; a CNN on MNIST.

300 digits of scikit-learn, MLP 64-16-10 of tanh (n = 1,210), trained with the prior precision 1 to
a gradient of 1e-8; the scores are those of the 1,497 other digits. Then another training with 0.01,
after which 300 held-out digits choose the prior precision. Without laplace-torch the numbers below
ours are those that its version 0.3 gave here.

`--runs 200` estimates the evidence of the digits that often without the matrix, with other random
numbers, and counts how often its interval holds the exact one. `--data FILE` (x_train, y_train,
x_test, y_test in an .npz file) adds a CNN on MNIST: functional variances of the full matrix, where
its Jacobian for the test images would take 173 GB.
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.apps import laplace

CE = nn.CrossEntropyLoss()
RECORDED = {  # evidence at delta = 1, the best delta, evidence there: laplace-torch 0.3
    "full": (-230.810068, 1.228947, -228.710664),
    "kron, biases apart": (-311.476467, 1.706036, -292.697438),
    "diag": (-599.255299, 3.081882, -458.425161),
    "last-layer": (-98.963729, 0.775473, -97.722976),
    "kron, last layer": (-113.598967, 0.934130, -113.500043),
}


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks apps laplace", description=__doc__)
    parser.add_argument("--runs", type=int, default=0, help="of the evidence without the matrix")
    parser.add_argument("--rtol", type=float, default=0.05, help="of these")
    parser.add_argument("--data", help="path of an .npz file with MNIST")
    parser.add_argument("--images", type=int, default=1000, help="of MNIST, to train on")
    parser.add_argument("--queries", type=int, default=4, help="test images to solve for")
    parser.add_argument("--only-data", action="store_true", help="leave the digits out")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    if options.data:
        mnist(options.data, options.images, options.queries)
    if options.only_data:
        return
    torch.set_default_dtype(torch.float64)
    with hesse.deterministic():
        digits = Digits()
        risk, theta = digits.trained(1.0)
        structures(digits, risk, theta)
        held_out(digits)
        if options.runs:
            coverage(risk, theta, options.runs, options.rtol)


class Digits:
    """300 to train, 300 held out, and the others."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
        X, y = torch.tensor(digits.data / 16)[order], torch.tensor(digits.target)[order]
        self.train, self.held_out = (X[:300], y[:300]), (X[300:600], y[300:600])
        self.rest, self.test = (X[300:], y[300:]), (X[600:], y[600:])

    def trained(self, delta: float) -> tuple[hesse.Risk, Any]:
        """The risk and its minimum for a prior precision."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        risk = hesse.Risk(model, CE, self.train, weight_decay=delta / 300)
        parameters = list(model.parameters())
        optimizer = torch.optim.LBFGS(
            *(parameters, 1, 400),
            history_size=30,
            tolerance_grad=1e-8,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            decay = sum((p**2).sum() for p in parameters) * (delta / 600)
            value = CE(model(self.train[0]), self.train[1]) + decay
            value.backward()
            return value

        optimizer.step(closure)  # pyright: ignore
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        return risk, hesse.minimize(risk, start, "trust-cg", atol=1e-8, rtol=0.0).x


def structures(digits: Digits, risk: hesse.Risk, theta: Any) -> None:
    """Evidence, best prior, and scores of every structure; the peer's numbers below."""
    whole, last = biases_apart(risk, theta)
    rows: dict[str, dict[str, Any]] = {
        "full": {"structure": "full"},
        "kron": {"structure": "kron"},
        "kron, biases apart": {"structure": whole},
        "diag": {"structure": "diag"},
        "low-rank": {"structure": "low-rank"},
        "last-layer": {"structure": "last-layer"},
        "kron, last layer": {"structure": last, "where": "2.*"},
    }
    peers = torchs(risk, theta) if importlib.util.find_spec("laplace") else RECORDED
    print("digits              evidence  best delta  evidence     NLL     ECE  products  s")
    for name, options in rows.items():
        start = time.process_time()
        one = laplace(risk, theta, **options)
        best = laplace(risk, theta, prior="evidence", **options)
        scores = one.calibration(digits.rest)["Laplace"]
        numbers = f"{one.log_evidence.value:12.6f}{best.prior_precision:12.6f}"
        numbers += f"{best.log_evidence.value:12.6f}{scores['NLL']:8.4f}{scores['ECE']:8.4f}"
        print(f"{name:18}{numbers}{one.products:8}{time.process_time() - start:8.1f}")
        if name in peers:
            print(f"  laplace-torch   {''.join(f'{value:12.6f}' for value in peers[name])}")
    table = one.calibration(digits.rest)
    for row in ("MAP", "temperature"):
        print(f"{row:54}{table[row]['NLL']:8.4f}{table[row]['ECE']:8.4f}")


def biases_apart(risk: hesse.Risk, theta: Any) -> tuple[Any, Any]:
    """K-FAC with a block for each weight and for each bias, as the peer has it; the last layer."""
    parts = []
    for block in hesse.kfac_operator(risk, theta).blocks:
        S, A = block.left.entries[0], block.right.entries[0]
        weight = hesse.kronecker_operator(S, A[:-1, :-1].contiguous())
        parts += [weight, hesse.dense_operator(S * A[-1, -1])]
    return hesse.block_diagonal_operator(parts), hesse.block_diagonal_operator(parts[2:])


def torchs(risk: hesse.Risk, theta: Any) -> dict[str, tuple[float, ...]]:
    """The same by laplace-torch."""
    warnings.filterwarnings("ignore")
    from laplace import Laplace  # pyright: ignore
    from laplace.curvature import BackPackGGN  # pyright: ignore
    from torch.utils.data import DataLoader, TensorDataset

    with torch.no_grad():
        for name, parameter in risk.model.named_parameters():
            parameter.copy_(theta[name])
    batch = risk.data.first
    loader = DataLoader(TensorDataset(batch.inputs, batch.targets), batch_size=100)
    found = {}
    for name in RECORDED:
        is_last = "last" in name
        shape = name.split(",")[0] if name.startswith(("kron", "diag")) else "full"
        subset = "last_layer" if is_last else "all"
        la = Laplace(
            *(risk.model, "classification"),
            subset_of_weights=subset,
            hessian_structure=shape,
            prior_precision=1.0,
            backend=BackPackGGN,
        )
        la.fit(loader)
        one = float(la.log_marginal_likelihood())
        la.optimize_prior_precision(method="marglik", n_steps=300, lr=0.1)
        found[name] = one, float(la.prior_precision), float(la.log_marginal_likelihood())
    return found


def held_out(digits: Digits) -> None:
    """MAP, temperature and Laplace where MAP is too sure of itself."""
    risk, theta = digits.trained(0.01)
    print("trained with 0.01; the prior by 300 held-out digits; scores of 1,197 others")
    for structure in ("full", "diag", "last-layer"):
        made = laplace(risk, theta, structure=structure, prior="held-out", held_out=digits.held_out)
        table = made.calibration(digits.test)
        if structure == "full":
            print("\n".join(table.lines()[:3]))
        row = table.lines()[3].replace("Laplace    ", f"{structure:11}")
        print(f"{row}  prior {made.prior_precision:.3g}")


def coverage(risk: hesse.Risk, theta: Any, runs: int, rtol: float) -> None:
    """How often the interval of the evidence holds the exact one."""
    matrix = hesse.ggn_operator(risk.with_loss(CE), theta).to_dense()
    matrix -= risk.weight_decay * torch.eye(len(matrix))
    A = hesse.function_operator(lambda v: matrix @ v, len(matrix), symmetric=True)
    exact = laplace(risk, theta, structure=matrix).log_evidence.value
    held, sampled, products = 0, 0, 0
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        estimate = laplace(risk, theta, structure=A, generator=generator).evidence(rtol=rtol)
        low, high = estimate.interval
        held += low <= exact <= high
        sampled += estimate.standard_error > 0.0
        products += estimate.products
    print(
        f"evidence without the matrix, rtol {rtol:g}: the interval holds {exact:.3f} in {held} of"
    )
    print(f"{runs} runs ({sampled} of them sampled), {products / runs:.0f} products a run")


# -- MNIST -----------------------------------------------------------------------------------------


def mnist(path: str, count: int, queries: int) -> None:
    """Functional variances of the full Gauss-Newton matrix of a CNN, without its Jacobian."""
    d = np.load(path)

    def images(name: str, number: int) -> tuple[Tensor, Tensor]:
        pixels = torch.tensor(d[f"x_{name}"][:number, None] / 255.0, dtype=torch.float32)
        return pixels, torch.tensor(d[f"y_{name}"][:number].astype(np.int64))

    X, y = images("train", count)
    test = images("test", 10000)
    model = trained_cnn(X, y)
    n = sum(p.numel() for p in model.parameters())
    data = list(zip(X.split(250), y.split(250), strict=True))
    risk = hesse.Risk(model, CE, data)
    posterior = laplace(
        *(risk, None), prior=10.0, memory_budget="200MB",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    start = time.process_time()
    covariance = posterior.functional_variance(test[0][:queries])
    seconds, products = time.process_time() - start, posterior.products
    print(f"MNIST, {count} images, a CNN of {n:,} parameters: the Jacobian of 10,000 test images")
    print(f"would take {4e5 * n / 1e9:.0f} GB; {peak():.2f} GB at most so far, torch included")
    print(f"covariances of {queries} images: {products} products, {seconds:.0f} s")
    start = time.process_time()
    rough = posterior.functional_variance(test[0], draws=32)
    ratio = float(traces(rough[:queries]).sum() / traces(covariance).sum())
    seconds = time.process_time() - start
    print(
        f"of all 10,000 from 32 draws: {posterior.products - products} products, {seconds:.0f} s,"
    )
    print(f"{peak():.2f} GB at most; their ratio to those above is {ratio:.2f}")


def traces(C: Tensor) -> Tensor:
    return C.diagonal(dim1=1, dim2=2).sum(1)


def trained_cnn(X: Tensor, y: Tensor) -> nn.Module:
    """Two convolutions and two linear layers, 5 epochs of Adam."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(512, 800), nn.ReLU(), nn.Linear(800, 10)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(5):
        for x, target in zip(X.split(50), y.split(50), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), target).backward()
            optimizer.step()
    return model


def peak() -> float:
    """The most memory of this process so far, in GB, torch itself included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
