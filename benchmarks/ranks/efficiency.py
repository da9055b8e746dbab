"""CPU seconds of a product without and with its message, beside a gradient and its message."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import distributed

import hesse
from benchmarks.models.autoencoders import autoencoder, synthetic_images
from benchmarks.models.losses import ReconstructionLoss
from benchmarks.ranks.processes import run

WIDTHS = (784, 1000, 500, 250, 30, 250, 500, 1000, 784)
RANKS = 2
_WARM_UPS = 6

Call = Callable[[], object]

HEADER = """\
| batch a rank | of | seconds alone | with its message | efficiency | beside the gradient's |
|--:|---|--:|--:|--:|--:|"""


def table(batches: list[int], repeats: int) -> list[str]:
    """A row for each batch size and each of gradient, Hessian and GGN product."""
    rows = [HEADER]
    for batch in batches:
        each = run(RANKS, _seconds, batch, repeats)
        found = {name: [pair for rank in each for pair in rank[name]] for name in each[0]}
        ratios = {name: median(a / b for a, b in pairs) for name, pairs in found.items()}
        for name, pairs in found.items():
            alone, with_message = (median(pair[i] for pair in pairs) for i in (0, 1))
            rows.append(
                f"| {batch} | {name} | {alone:.4f} | {with_message:.4f} "
                f"| {ratios[name]:.3f} | {ratios[name] / ratios['gradient']:.3f} |"
            )
    return rows


def _seconds(rank: int, batch: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Of each call without and with its message, one after the other: both are disturbed alike."""
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

    calls: dict[str, tuple[Call, Call]] = {
        "gradient": (gradient, reduced),
        "Hessian": (lambda: H.local @ v, lambda: H @ v),  # type: ignore[attr-defined]
        "GGN": (lambda: G.local @ v, lambda: G @ v),  # type: ignore[attr-defined]
    }
    for _ in range(_WARM_UPS):
        for pair in calls.values():
            tuple(map(_time, pair))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(repeats):
        for name, pair in calls.items():
            order = (0, 1) if number % 2 else (1, 0)
            taken = {i: _time(pair[i]) for i in order}
            seconds[name].append((taken[0], taken[1]))
    return seconds


def _time(call: Call) -> float:
    """CPU seconds of a call that all processes begin together."""
    distributed.barrier()
    began = time.process_time()
    call()
    return time.process_time() - began
