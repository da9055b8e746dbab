"""Deep autoencoders of digits, MNIST or curves: HessianFree and its rivals for equal seconds.

Error: squared, summed over pixels, mean over 5,000 training images. The 1,797 digits of
scikit-learn have 64-128-64-32-2; MNIST, from a file, 784-1000-500-250-30; curves, which are
generated, 784-400-200-100-50-25-6. The rate of a rival is the best of three, each of which is tried
with one seed for 15 % of the seconds. With --bfloat16 all of them train in that precision; errors
are those of the float32 model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import hesse
from benchmarks.training import rivals
from benchmarks.training.contest import RATES, Contestants, add_options, contest, usual
from benchmarks.training.images import PIXELS, curves, load
from benchmarks.training.options import parse, parser
from benchmarks.training.precision import in_bfloat16
from benchmarks.training.task import Batch, Task
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


def main(arguments: list[str] | None = None) -> None:
    """Run all, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    task, count = _task(options.data)
    thresholds = THRESHOLDS[task.name]
    if options.bfloat16:
        torch.set_float32_matmul_precision("medium")
        task = in_bfloat16(task)
    options.batch, options.last_batch = (min(n, count) for n in (options.batch, options.last_batch))
    contest(task, _rivals(options), options, thresholds)


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


def _rivals(options: argparse.Namespace) -> Contestants:
    batch = options.rivals_batch
    return usual(options) | {
        "Shampoo": Tunable(lambda rate: rivals.shampoo(rate, batch), RATES),
        "Nesterov": Tunable(lambda rate: rivals.nesterov(rate, batch), RATES),
        "L-BFGS": Untuned(rivals.lbfgs(options.last_batch)),
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
    add("--bfloat16", action="store_true", help="train with matrix products in bfloat16")
    add_options(shared, first=1000, last=60_000, every=100)
    shared.set_defaults(rivals_batch=200)
    return parse(shared, arguments)
