"""Hessian and Gauss-Newton products against a gradient: time, interleaved in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from hesse.ad import hvp
from hesse.operators import ggn_operator, hessian_operator
from hesse.report.digits import autoencoder, digits, reconstruction_loss
from hesse.risk import Risk


def problems() -> dict[str, Risk]:
    """The digits autoencoder in two batch sizes, and a small convolutional network."""
    pixels, labels = digits()
    small, model = pixels[:100], autoencoder(0)
    convolution = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    images = pixels[:256].view(-1, 1, 8, 8)
    return {
        "autoencoder, batch 1797": Risk(model, reconstruction_loss, (pixels, pixels)),
        "autoencoder, batch 100": Risk(model, reconstruction_loss, (small, small)),
        "convolutions, batch 256": Risk(convolution, nn.CrossEntropyLoss(), (images, labels[:256])),
    }


def main(repeats: int = 21) -> None:
    """Print the median time of every product in gradients, and its error against float64."""
    print("| problem | product | ms | gradients | relative error |\n|---|---|--:|--:|--:|")
    for name, risk in problems().items():
        report(name, risk, repeats)


def report(name: str, risk: Risk, repeats: int) -> None:
    """The rows of one problem."""
    subjects, oracles = products_of(risk)
    for run in subjects.values():  # once, so that graphs are built and caches warm
        run()
    times: dict[str, list[float]] = {subject: [] for subject in subjects}
    for _ in range(repeats):
        for subject, run in subjects.items():
            start = time.perf_counter()
            run()
            times[subject].append(time.perf_counter() - start)
    medians = {subject: statistics.median(t) for subject, t in times.items()}
    for subject, run in subjects.items():
        exact = oracles.get(subject.split(",")[0])
        error = "" if exact is None else f"{relative_error(run(), exact):.0e}"
        ratio = medians[subject] / medians["gradient"]
        print(f"| {name} | {subject} | {1e3 * medians[subject]:.2f} | {ratio:.2f} | {error} |")


def products_of(risk: Risk) -> tuple[dict[str, Callable], dict[str, torch.Tensor]]:
    """What to time, by name, and the exact products in float64."""
    H, G = hessian_operator(risk, risk.params), ggn_operator(risk, risk.params)
    v = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(0))
    leaves = [leaf.detach().requires_grad_() for leaf in risk.params.values()]
    names = list(risk.params)

    def gradient():
        value = risk(dict(zip(names, leaves, strict=True)))
        return torch.autograd.grad(value, leaves)

    subjects: dict[str, Callable] = {
        "gradient": gradient,
        "Hessian, graph kept": lambda: H @ v,
        "Gauss-Newton, graph kept": lambda: G @ v,
    }
    for mode in ("reverse-over-reverse", "forward-over-reverse", "reverse-over-forward"):
        subjects[f"Hessian, {mode}"] = lambda mode=mode: hvp(risk, risk.params, v, mode)
    subjects["Hessian, finite-difference"] = lambda: hvp(risk, risk.params, v, "finite-difference")
    return subjects, exact_products(risk, v)


def exact_products(risk: Risk, v: torch.Tensor) -> dict[str, torch.Tensor]:
    """H v and G v in float64, from a copy of the model."""
    inputs, targets = risk.data.first.inputs.double(), risk.data.first.targets
    targets = targets.double() if targets.is_floating_point() else targets
    params = {name: p.double() for name, p in risk.params.items()}
    double = Risk(risk.model, risk.loss, (inputs, targets), params=params)
    return {
        "Hessian": hvp(double, params, v.double()),
        "Gauss-Newton": ggn_operator(double, params) @ v.double(),
    }


def relative_error(product: torch.Tensor, exact: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return float((product.double() - exact).norm() / exact.norm())
