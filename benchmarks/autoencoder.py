"""Deep autoencoders of digits, MNIST or curves: HessianFree and its rivals for equal seconds.

Error: squared, summed over pixels, mean over 5,000 training images. The 1,797 digits of
scikit-learn have 64-128-64-32-2; MNIST, from a file, 784-1000-500-250-30; curves, which are
generated, 784-400-200-100-50-25-6. The rate of a rival is the best of three, each of which is tried
with one seed for 15 % of the seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import hesse
from benchmarks.training import rivals
from benchmarks.training.contest import contest
from benchmarks.training.images import PIXELS, curves, load
from benchmarks.training.options import parse, parser
from benchmarks.training.task import Batch, Task, growing
from benchmarks.training.tuning import Tunable, Untuned

THRESHOLDS = {
    "mnist": (2.1, 1.4, 0.73, 0.69, 0.5),
    "curves": (0.48, 0.16, 0.11, 0.074, 0.058),
    "digits": (2.0, 1.4, 1.0, 0.8, 0.7),
}
_WIDTHS = {
    "digits": (64, 128, 64, 32, 2),
    "mnist": (PIXELS, 1000, 500, 250, 30),
    "curves": (PIXELS, 400, 200, 100, 50, 25, 6),
}
_MEASURED = 5000  # images on which the error is measured
_ADAM = (1e-3, 3e-3, 1e-2)


def main(arguments: list[str] | None = None) -> None:
    """Run all, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    task, count = _task(options.data)
    contest(task, _rivals(count, options), options, THRESHOLDS[task.name])


def autoencoder(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Tanh units, a linear code, logits of the pixels; sparse initialisation scaled by fan-in."""
    layers: list[nn.Module] = []
    mirrored = widths + widths[-2::-1]
    for depth in range(len(mirrored) - 1):
        layers.append(nn.Linear(mirrored[depth], mirrored[depth + 1]))
        if depth not in (len(widths) - 2, len(mirrored) - 2):
            layers.append(nn.Tanh())
    generator = torch.Generator().manual_seed(seed)
    return hesse.sparse_init_(nn.Sequential(*layers), std=15**-0.5, generator=generator)


def _rivals(count: int, options: argparse.Namespace) -> dict[str, Tunable | Untuned]:
    last, batch = min(options.last_batch, count), options.rivals_batch
    sizes = growing(min(options.batch, count), last, options.every)
    settings = {
        "damping_rule": options.damping_rule,
        "max_cg_iterations": options.cg,
        "refresh_every": options.refresh_every,
    }
    return {
        "HessianFree": Untuned(rivals.hessian_free(sizes, **settings)),
        "K-FAC": Untuned(rivals.kfac(sizes, refresh_every=options.refresh_every)),
        "AdamW": Tunable(lambda rate: rivals.adamw(rate, batch), _ADAM),
        "Muon": Tunable(lambda rate: rivals.muon(rate, batch), _ADAM),
        "SOAP": Tunable(lambda rate: rivals.soap(rate, batch), _ADAM),
        "Shampoo": Tunable(lambda rate: rivals.shampoo(rate, batch), _ADAM),
        "Nesterov": Tunable(lambda rate: rivals.nesterov(rate, batch), (1e-3, 3e-3, 1e-2)),
        "L-BFGS": Untuned(rivals.lbfgs(last)),
    }


def _task(data: str) -> tuple[Task, int]:
    name, images = _images(data)
    measured = images[:_MEASURED]

    def draw(count: int, generator: torch.Generator) -> Batch:
        if count == len(images):
            return images, images
        batch = images[torch.randperm(len(images), generator=generator)[:count]]
        return batch, batch

    def loss(logits: Tensor, pixels: Tensor) -> Tensor:
        total = binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
        return total / len(pixels)

    @torch.no_grad()
    def error(model: nn.Module) -> float:
        return float(((model(measured).sigmoid() - measured) ** 2).sum(dim=1).mean())

    def model(seed: int) -> nn.Module:
        return autoencoder(_WIDTHS[name], seed)

    return Task(name, model, loss, draw, error, "error", solved=0.0), len(images)


def _images(data: str) -> tuple[str, Tensor]:
    if data == "digits":
        from hesse.report.digits import digits

        return data, digits()[0]
    return (data, curves()) if data == "curves" else ("mnist", load(Path(data)))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    shared = parser("autoencoder", __doc__)
    shared.set_defaults(seeds=1, seconds=3600.0, cg=20, damping_rule="levenberg-marquardt")
    add = shared.add_argument
    add("--data", default="digits", help="digits, curves, or an .npz file with MNIST")
    add("--batch", type=int, default=1000, help="images of the first steps of HessianFree")
    add("--last-batch", type=int, default=60_000, help="images that its batches grow to")
    add("--every", type=int, default=100, help="steps after which its batches double")
    add("--refresh-every", type=int, default=1, help="steps of HessianFree's preconditioner")
    add("--rivals-batch", type=int, default=200)
    return parse(shared, arguments)
