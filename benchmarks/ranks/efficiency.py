"""CPU seconds of a product without and with its message, beside a gradient and its message."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import distributed

import hesse
from benchmarks.models.autoencoders import autoencoder, synthetic_images
from benchmarks.models.losses import ReconstructionLoss
from benchmarks.ranks.processes import run

WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
RANKS = 2
_WARM_UPS = 6

HEADER = """\
| batch a rank | of | seconds alone | with its message | efficiency | beside the gradient's |
|--:|---|--:|--:|--:|--:|"""


def table(batches: list[int], repeats: int) -> list[str]:
    """A row for each batch size and each of gradient, Hessian and GGN product."""
    rows = [HEADER]
    for batch in batches:
        medians = run(RANKS, _medians, batch, repeats)
        mean = {name: sum(m[name] for m in medians) / RANKS for name in medians[0]}
        efficiency = {name: mean[name, False] / mean[name, True] for name, _ in mean}
        for name, value in efficiency.items():
            rows.append(
                f"| {batch} | {name} | {mean[name, False]:.4f} | {mean[name, True]:.4f} "
                f"| {value:.3f} | {value / efficiency['gradient']:.3f} |"
            )
    return rows


def _medians(rank: int, batch: int, repeats: int) -> dict[tuple[str, bool], float]:
    images = synthetic_images(RANKS * batch, WIDTHS[0])[rank::RANKS]
    model, loss = autoencoder(WIDTHS), ReconstructionLoss()
    risk = hesse.Risk(model, loss, [(images, images)], group=distributed.group.WORLD)
    H, G = hesse.hessian_operator(risk), hesse.ggn_operator(risk)
    v = H.domain.gaussian(torch.Generator().manual_seed(0))
    parameters = list(model.parameters())

    def gradient() -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss(model(images), images), parameters))

    def reduced() -> None:
        distributed.all_reduce(torch.cat([part.reshape(-1) for part in gradient()]))

    calls: dict[tuple[str, bool], Callable[[], object]] = {
        ("gradient", False): gradient,
        ("gradient", True): reduced,
        ("Hessian", False): lambda: H.local @ v,  # type: ignore[attr-defined]
        ("Hessian", True): lambda: H @ v,
        ("GGN", False): lambda: G.local @ v,  # type: ignore[attr-defined]
        ("GGN", True): lambda: G @ v,
    }
    for _ in range(_WARM_UPS):
        H @ v, G @ v
    seconds = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            distributed.barrier()
            began = time.process_time()
            call()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}
