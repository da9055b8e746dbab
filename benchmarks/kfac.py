"""K-FAC and EK-FAC beside those of curvlinops, and as preconditioners of conjugate gradients.

The network is the deep autoencoder 784-1000-500-250-30 and back, batch 1000, one random vector; its
images are synthetic unless HESSE_BENCH_IMAGES names real ones. Seconds are those of the processor,
of all threads, and all subjects take turns, so that a machine that slows down slows all of them
down; floating-point operations do not depend on that.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from benchmarks.models.autoencoders import DATA, autoencoder, real_images, synthetic_images
from benchmarks.models.losses import ReconstructionLoss
from benchmarks.turns import fastest, flops
from hesse.curvature.kronecker.estimate import Estimator, Settings

_IMAGES = 10_000
DAMPINGS = (1e-1, 1e-2, 1e-3)
WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)

Subjects = dict[str, Callable[[], Any]]


def main(arguments: Sequence[str] = ()) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kfac", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300, help="of Adam before the CG table")
    parser.add_argument("--batch", type=int, default=500, help="images of the CG table")
    parser.add_argument("--only", choices=("times", "cg"))
    options = parser.parse_args(list(arguments))
    torch.set_num_threads(options.threads)
    path = os.environ.get(DATA)
    images = real_images(path, _IMAGES) if path else synthetic_images(_IMAGES, WIDTHS[0])
    if options.only != "cg":
        times(images[:1000], options.repeats)
    if options.only != "times":
        conjugate_gradients(images, options.batch, options.steps)


# -- Times -----------------------------------------------------------------------------------------


def times(images: Tensor, repeats: int) -> None:
    """Set-up and products, in gradients: the fastest of all turns."""
    model, loss = autoencoder(WIDTHS), nn.BCEWithLogitsLoss()
    subjects = ours(model, loss, images)
    if importlib.util.find_spec("curvlinops") is not None:
        subjects |= peers(model, loss, images)
    counts = {name: flops(run) for name, run in subjects.items()}  # warms up, too
    best = fastest(subjects, repeats)
    print("| | ms | gradients | FLOPs, in those of a gradient |\n|---|--:|--:|--:|")
    for name, taken in best.items():
        relative = counts[name] / counts["gradient"]
        print(f"| {name} | {1e3 * taken:.0f} | {taken / best['gradient']:.2f} | {relative:.2f} |")
    print()
    if "curvlinops K-FAC product" in best:
        print_ratios(best)


def print_ratios(seconds: dict[str, float]) -> None:
    """Hesse / curvlinops, whose set-ups come with a product."""
    print("| | Hesse / curvlinops |\n|---|--:|")
    for ours, set_up, product in (
        ("K-FAC factors", "K-FAC factors and a product", "K-FAC product"),
        ("K-FAC product", "K-FAC product", None),
        ("EK-FAC set-up", "EK-FAC set-up and a product", "EK-FAC product"),
        ("EK-FAC inverse", "EK-FAC product", None),
    ):
        theirs = seconds[f"curvlinops {set_up}"]
        theirs -= seconds[f"curvlinops {product}"] if product else 0.0
        print(f"| {ours} | {seconds[ours] / theirs:.2f} |")
    print()


def ours(model: nn.Module, loss: nn.Module, images: Tensor) -> Subjects:
    """A gradient, and what Hesse does; operators that exist already, for new points."""
    risk = hesse.Risk(model, loss, (images, images))
    G = hesse.ggn_operator(risk, mode="traced-split")
    K = hesse.kfac_operator(risk, fisher="sampled", samples=1)
    E = hesse.ekfac_operator(risk, fisher="sampled", samples=1, damping=1e-3)
    inverses = [hesse.inverse_operator(A) for A in (K.damped(1e-3, "factored"), E)]
    v, x = torch.randn(G.shape[0]), risk.params
    for operator in (K, E):  # comparisons with the model are due at uses 1, 2 and 4
        for _ in range(4):
            operator.at(x)

    def gradient() -> None:
        model.zero_grad()
        loss(model(images), images).backward()

    estimator = Estimator(risk, Settings("sampled", 1, "expand", rotated=True, seed=0))
    for _ in range(4):
        estimator.blocks(x)

    return {
        "gradient": gradient,
        "Gauss-Newton product": lambda: G @ v,
        "K-FAC factors": lambda: K.at(x),
        "K-FAC product": lambda: K @ v,
        "K-FAC inverse, factored damping": lambda: inverses[0] @ v,
        "EK-FAC set-up": lambda: estimator.blocks(x),
        "EK-FAC refreshed": lambda: E.at(x),
        "EK-FAC inverse": lambda: inverses[1] @ v,
    }


def peers(model: nn.Module, loss: nn.Module, images: Tensor) -> Subjects:
    """The same by curvlinops, with weight and bias in one block as well."""
    import curvlinops

    def make(kind: str) -> Any:
        return getattr(curvlinops, f"{kind}LinearOperator")(
            model,
            loss,
            list(model.parameters()),
            [(images, images)],
            fisher_type="mc",
            mc_samples=1,
            separate_weight_and_bias=False,
            check_deterministic=False,
        )

    K, E = make("KFAC"), make("EKFAC")
    v = torch.randn(K.shape[0])
    return {
        "curvlinops K-FAC factors and a product": lambda: make("KFAC") @ v,
        "curvlinops K-FAC product": lambda: K @ v,
        "curvlinops EK-FAC set-up and a product": lambda: make("EKFAC") @ v,
        "curvlinops EK-FAC product": lambda: E @ v,
    }


# -- Conjugate gradients ---------------------------------------------------------------------------


def conjugate_gradients(images: Tensor, batch: int, steps: int) -> None:
    """Products to a residual of 0.1 in the damped Gauss-Newton system of the gradient.

    Adam sees another batch in every step; the system is that of the first one.
    """
    model, loss = autoencoder(WIDTHS), ReconstructionLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = images.split(batch)
    for step in range(steps):
        own = batches[step % len(batches)]
        optimizer.zero_grad()
        loss(model(own), own).backward()
        optimizer.step()
    risk = hesse.Risk(model, loss, (batches[0], batches[0]))
    G = hesse.ggn_operator(risk)
    b, I = -G.flat_gradient, hesse.identity_operator(G.shape[0])
    generator = torch.Generator().manual_seed(0)
    options = {"fisher": "sampled", "generator": generator}
    K = hesse.kfac_operator(risk, samples=1, **options)
    E = hesse.ekfac_operator(risk, samples=5, **options)
    print("| damping | none | K-FAC, factored, one vector | EK-FAC, five vectors |")
    print("|--:|--:|--:|--:|")
    for damping in DAMPINGS:
        row = [f"{damping:g}"]
        for A in (None, K.damped(damping, "factored"), E.damped(damping)):
            M = None if A is None else hesse.inverse_operator(A)
            found = hesse.solve(
                G + damping * I, b, "cg", preconditioner=M, rtol=0.1, max_iterations=300
            )
            row.append(f"{found.products}" if found.converged else f"> {found.products}")
        print(f"| {' | '.join(row)} |", flush=True)
