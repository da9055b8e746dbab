"""The fastest of Hesse's modes against the fastest peer, and against curvlinops.

A wrong product takes no part, nor does `auto`, which changes from one mode to another. A block of
vectors may also be multiplied one by one, so that the fastest way for eight vectors may be eight
times the fastest for one. curvlinops takes part in its own column even where its product is wrong:
its work is the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.case import BLOCK
from benchmarks.measure import Measurement

REFERENCE = "torch/gradient/autograd"
PRODUCTS = {("hessian", 1): "H v", ("hessian", BLOCK): f"H V, {BLOCK} vectors"} | {
    ("ggn", 1): "G v",
    ("ggn", BLOCK): f"G V, {BLOCK} vectors",
    ("fisher", 1): "F v",
    ("empirical", 1): "F v, empirical",
    ("jacobian", 1): "J v",
    ("adjoint", 1): "J'u",
}


@dataclass(frozen=True)
class Best:
    """The fastest of some subjects, in seconds for the whole block."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Comparison:
    """One product of one model."""

    model: str
    quantity: str
    vectors: int
    gradient: float
    hesse: Best | None
    peer: Best | None
    peer_without_jax: Best | None
    curvlinops: Best | None

    def ratio(self, other: str) -> float | None:
        """Hesse's time over that of `peer`, `peer_without_jax` or `curvlinops`."""
        rival: Best | None = getattr(self, other)
        return self.hesse.seconds / rival.seconds if self.hesse and rival else None


RIVALS = {
    "peer": "fastest peer",
    "peer_without_jax": "fastest peer but JAX",
    "curvlinops": "curvlinops",
}


def compare(measurements: list[Measurement]) -> list[Comparison]:
    """One comparison for every model and product."""
    models = list(dict.fromkeys(m.model for m in measurements))
    return [
        comparison
        for quantity, vectors in PRODUCTS
        for model in models
        if (comparison := _compare(model, quantity, vectors, measurements)) is not None
    ]


def _compare(
    model: str, quantity: str, vectors: int, measurements: list[Measurement]
) -> Comparison | None:
    timed = [m for m in measurements if m.model == model and m.seconds]
    gradient = next((m.median for m in timed if m.subject.name == REFERENCE), None)
    timed = [m for m in timed if m.subject.quantity == quantity]
    if gradient is None or not timed:
        return None

    def best(admit: Callable[[Measurement], bool]) -> Best | None:
        return _best([m for m in timed if admit(m)], vectors)

    return Comparison(
        model,
        quantity,
        vectors,
        gradient,
        hesse=best(lambda m: m.valid and m.subject.library == "hesse" and not m.subject.adaptive),
        peer=best(lambda m: m.valid and m.subject.library != "hesse"),
        peer_without_jax=best(lambda m: m.valid and m.subject.library not in ("hesse", "jax")),
        curvlinops=best(lambda m: m.subject.library == "curvlinops"),
    )


def _best(measurements: list[Measurement], vectors: int) -> Best | None:
    candidates = []
    for m in measurements:
        if m.subject.vectors == vectors:
            candidates.append(Best(m.subject.name, m.median))
        elif m.subject.vectors == 1:
            candidates.append(Best(f"{vectors} x {m.subject.name}", vectors * m.median))
    return min(candidates, key=lambda best: best.seconds, default=None)


def geometric_means(comparisons: list[Comparison]) -> dict[tuple[str, int], dict[str, str]]:
    """By product and rival: the geometric mean of Hesse's share of the time, and its range."""
    means = {}
    for product in PRODUCTS:
        ours = [c for c in comparisons if (c.quantity, c.vectors) == product]
        means[product] = {rival: _mean([c.ratio(rival) for c in ours]) for rival in RIVALS}
    return means


def _mean(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return "-"
    mean = statistics.geometric_mean(known)
    return f"{mean:.2f} ({min(known):.2f} to {max(known):.2f}, {len(known)} models)"
