"""Exact diagonals of Gauss-Newton matrices beside those of BackPACK, and sampled ones.

Classifiers of images at random weights: the network 784-256-128-10, batch 256, and a convolutional
one. The subjects take turns, so that a machine that slows down slows all of them down; times are
those of the processor in one thread, to which other processes do not add. Errors are those from the
diagonal in float64, and floating-point operations do not depend on the machine.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

import hesse
from benchmarks.turns import fastest, flops

CLASSES = 10
Subjects = dict[str, Callable[[], Tensor]]


def main(arguments: Sequence[str] = ()) -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks diagonal", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", choices=tuple(NETWORKS))
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(1)
    for name, make in NETWORKS.items():
        if options.only in (None, name):
            torch.manual_seed(0)
            print(f"{name}\n")
            table(*make(), options.repeats)


def perceptron() -> tuple[nn.Module, Tensor]:
    """784-256-128-10 and 256 images."""
    widths = (784, 256, 128, CLASSES)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]), torch.rand(256, 784)


def convolutional() -> tuple[nn.Module, Tensor]:
    """Two convolutions and a linear layer, and 64 images of 3 x 16 x 16."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(512, CLASSES),
    )  # fmt: skip
    return model, torch.rand(64, 3, 16, 16)


NETWORKS = {"perceptron": perceptron, "convolutional": convolutional}


def table(model: nn.Module, images: Tensor, repeats: int) -> None:
    """Times and floating-point operations in gradients, and errors."""
    labels, loss = torch.randint(0, CLASSES, (len(images),)), nn.CrossEntropyLoss()
    subjects = ours(model, images, labels, loss)
    if importlib.util.find_spec("backpack") is not None:
        subjects |= peers(model, images, labels, loss)
    exact = _exact(model, images, labels, loss)
    counts = {name: flops(run, 3) for name, run in subjects.items()}  # warms up, too
    best = fastest(subjects, repeats)
    print("| | ms | gradients | FLOPs, in those of a gradient | error |\n|---|--:|--:|--:|--:|")
    for name, run in subjects.items():
        error = float((run().double() - exact).norm() / exact.norm())
        shown = "" if name == "gradient" else f"{error:.1e}"
        relative = counts[name] / counts["gradient"]
        print(
            f"| {name} | {1e3 * best[name]:.1f} | {best[name] / best['gradient']:.1f} | "
            f"{relative:.2f} | {shown} |"
        )
    print()


def ours(model: nn.Module, images: Tensor, labels: Tensor, loss: nn.Module) -> Subjects:
    """A gradient, and the diagonals of Hesse at a new point."""
    risk = hesse.Risk(model, loss, (images, labels))
    G = hesse.ggn_operator(risk)
    F = hesse.fisher_operator(risk, kind="empirical")
    x = risk.params
    parameters = list(model.parameters())

    def gradient() -> Tensor:
        parts = torch.autograd.grad(loss(model(images), labels), parameters)
        return torch.cat([part.reshape(-1) for part in parts])

    return {
        "gradient": gradient,
        "Hesse, exact": lambda: hesse.diagonal(G.at(x)).value,
        "Hesse, 8 products with random signs": lambda: (
            hesse.diagonal(G, method="hutchinson", max_products=8, rtol=0.0).value
        ),
        "Hesse, empirical Fisher matrix": lambda: hesse.diagonal(F.at(x)).value,
    }


def peers(model: nn.Module, images: Tensor, labels: Tensor, loss: nn.Module) -> Subjects:
    """The same by BackPACK: exact, and with one draw of the targets."""
    library = importlib.import_module("backpack")
    backpack, extend = library.backpack, library.extend
    extensions = importlib.import_module("backpack.extensions")
    extended, extended_loss = extend(copy.deepcopy(model)), extend(copy.deepcopy(loss))

    def run(extension: object, name: str) -> Tensor:
        extended.zero_grad()
        value = extended_loss(extended(images), labels)
        with backpack(extension):
            value.backward()
        return torch.cat([getattr(p, name).reshape(-1) for p in extended.parameters()])

    return {
        "BackPACK, exact": lambda: run(extensions.DiagGGNExact(), "diag_ggn_exact"),
        "BackPACK, one draw": lambda: run(extensions.DiagGGNMC(), "diag_ggn_mc"),
    }


def _exact(model: nn.Module, images: Tensor, labels: Tensor, loss: nn.Module) -> Tensor:
    """The diagonal from Jacobians of single examples in float64: softmax has the root S."""
    double, images = copy.deepcopy(model).double(), images.double()
    assert isinstance(loss, nn.CrossEntropyLoss)
    params = {name: p.detach() for name, p in double.named_parameters()}

    def outputs(params: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(double, params, (image[None],))[0]

    total = torch.zeros(sum(p.numel() for p in params.values()), dtype=torch.float64)
    for image in images:
        parts = torch.func.jacrev(outputs)(params, image).values()
        J = torch.cat([part.reshape(CLASSES, -1) for part in parts], dim=1)
        p = outputs(params, image).softmax(0)
        S = p.sqrt().diag() - p[:, None] * p.sqrt()
        total += (S.T @ J).square().sum(0) / len(images)
    return total
