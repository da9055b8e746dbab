"""The autoencoder 784-1000-500-250-30 of MNIST: HessianFree beside fused AdamW, for equal seconds.

Error: squared, summed over pixels, mean over 5,000 training images. Without --data it trains
64-128-64-32-2 on the 1,797 digits of scikit-learn, which are as many images as fit in a test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import hesse
from benchmarks.training.options import parse, parser
from benchmarks.training.report import Runs, write
from benchmarks.training.run import train
from benchmarks.training.task import Batch, Task, adamw, growing, hessian_free

THRESHOLDS = (2.1, 1.4, 0.73, 0.69, 0.5)
_PIXELS = 784
_MEASURED = 5000  # images on which the error is measured


def main(arguments: list[str] | None = None) -> None:
    """Run both, continuing where an earlier call was cut off; write table and plot."""
    options = _options(arguments)
    images = _images(options.data)
    task, most = _task(images), len(images)
    sizes = growing(min(options.batch, most), min(options.last_batch, most), options.every)
    rivals = [
        hessian_free(sizes, damping_rule=options.damping_rule, max_cg_iterations=options.cg),
        adamw(options.adamw_lr, options.adamw_batch),
    ]
    runs: Runs = {}
    for seed in range(options.seeds):
        for rival in rivals:
            if rival.name in options.rivals or not options.rivals:
                history = train(task, rival, seed, options.seconds, options.output)
                runs[task.name, rival.name, seed] = history
    write(options.output / "mnist", [task], runs, THRESHOLDS)


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


def _images(data: Path | None) -> Tensor:
    """Pixels in [0, 1], one image a row."""
    if data is None:
        from hesse.report.digits import digits

        return digits()[0]
    import numpy as np

    with np.load(data) as file:
        name = next(n for n in ("x_train", "train_images", "images", *file) if n in file)
        images = torch.from_numpy(file[name])
    images = images.reshape(len(images), -1).float()
    return images / 255 if images.max() > 1 else images


def _task(images: Tensor) -> Task:
    is_mnist = images.shape[1] == _PIXELS
    widths = (_PIXELS, 1000, 500, 250, 30) if is_mnist else (64, 128, 64, 32, 2)
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

    return Task(
        name="mnist" if is_mnist else "digits",
        model=lambda seed: autoencoder(widths, seed),
        loss=loss,
        draw=draw,
        error=error,
        error_name="error",
        solved=0.0,
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    shared = parser("mnist", __doc__)
    shared.set_defaults(seeds=1, seconds=3600.0, cg=20, damping_rule="scan")
    add = shared.add_argument
    add("--data", type=Path, help="an .npz file with the images of MNIST")
    add("--batch", type=int, default=1000, help="images of the first steps of HessianFree")
    add("--last-batch", type=int, default=60_000, help="images that its batches grow to")
    add("--every", type=int, default=100, help="steps after which its batches double")
    add("--adamw-batch", type=int, default=200)
    return parse(shared, arguments)
