"""Ratios of repeated products: a block's time over single ones', memory over the gradient's."""

from __future__ import annotations

import statistics

from benchmarks.case import BLOCK
from benchmarks.measure import Measurement
from benchmarks.summary import REFERENCE

PREPARED = {
    "hesse/hessian/retained-graph": "Hesse H, retained graph",
    "hesse/hessian/traced-split": "Hesse H, traced split",
    "hesse/ggn/retained-graph": "Hesse G, retained graph",
    "hesse/ggn/traced-split": "Hesse G, traced split",
    "pyhessian/hessian/retained-graph": "PyHessian H",
    "curvlinops/hessian/operator": "curvlinops H",
    "curvlinops/ggn/operator": "curvlinops G",
    "jax/hessian/linearize": "JAX H, linearized",
    "jax/ggn/linearize": "JAX G, linearized",
}
"""The subjects whose memory is compared."""

Table = dict[str, dict[str, float | None]]
"""Ratios by model and column."""


def block_table(measurements: list[Measurement]) -> str:
    """The fastest block of each library, per vector, over its fastest single product."""
    products = {"hessian": "H", "ggn": "G"}
    libraries = {"hesse": "Hesse", "curvlinops": "curvlinops", "jax": "JAX"}
    table: Table = {
        model: {
            f"{title} {product}": _per_vector(ours, library, quantity)
            for library, title in libraries.items()
            for quantity, product in products.items()
        }
        for model, ours in _by_model(measurements).items()
    }
    return _markdown(f"Blocks of {BLOCK}: time per vector over the time of a single one", table)


def _per_vector(ours: list[Measurement], library: str, quantity: str) -> float | None:
    times: dict[int, float] = {}
    for m in ours:
        kind = (m.subject.library, m.subject.quantity)
        if kind == (library, quantity) and m.valid and not m.subject.adaptive:
            vectors = m.subject.vectors
            times[vectors] = min(m.median / vectors, times.get(vectors, float("inf")))
    return times[BLOCK] / times[1] if len(times) == 2 else None


def memory_table(measurements: list[Measurement]) -> str:
    """Peaks of repeated products, what was prepared for them included, over the gradient's."""
    table: Table = {}
    for model, ours in _by_model(measurements).items():
        peaks = {m.subject.name: m.repeated_bytes for m in ours if m.repeated_bytes}
        gradient = peaks.get(REFERENCE)
        table[model] = {
            title: peaks[name] / gradient if gradient and name in peaks else None
            for name, title in PREPARED.items()
        }
    return _markdown("Memory: peak of repeated products over the gradient's peak", table)


def _by_model(measurements: list[Measurement]) -> dict[str, list[Measurement]]:
    models = dict.fromkeys(m.model for m in measurements)
    return {model: [m for m in measurements if m.model == model] for model in models}


def _markdown(title: str, table: Table) -> str:
    """One row a model, and the geometric means; columns without numbers are left out."""
    columns = [c for c in next(iter(table.values()), {}) if any(row[c] for row in table.values())]
    if not columns:
        return ""
    rows = [f"### {title}", "", f"| model | {' | '.join(columns)} |"]
    rows.append(f"|---|{'--:|' * len(columns)}")
    for model, ratios in table.items():
        rows.append(f"| {model} | {' | '.join(_cell(ratios[c]) for c in columns)} |")
    means = [
        statistics.geometric_mean([row[c] for row in table.values() if row[c]]) for c in columns
    ]
    rows.append(f"| **geometric mean** | {' | '.join(map(_cell, means))} |")
    return "\n".join(rows)


def _cell(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
