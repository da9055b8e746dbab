"""The measurements as a Markdown report and as raw numbers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import one_line
from benchmarks.measure import Measurement
from benchmarks.ratios import block_table, memory_table
from benchmarks.summary import (
    PRODUCTS,
    REFERENCE,
    RIVALS,
    Best,
    Comparison,
    compare,
    geometric_means,
)

INTRODUCTION = """\
Times are medians with quartiles, interleaved in one process (JAX takes its turns in another);
`times` is how often; `gradients` is the time for one vector in units of the gradient
(`torch/gradient/autograd`); `error` is relative to the product in float64; `first s` includes
preparation, tracing and compiling; `first MiB` is the peak of the tensors of preparation and the
first products, `MiB` that of a later one, what was prepared for it included.
The first subject that compiles also pays for torch's imports; `totals` has fresh processes.
`hesse/*/auto` starts in one mode and goes on in another: `totals` says what that costs.
Peers get the math kernels of attention and of recurrent layers, without which they have no second
derivatives; Hesse chooses for itself."""


def markdown(machine: dict, options: dict, measurements: list[Measurement]) -> str:
    """The whole report."""
    comparisons = compare(measurements)
    models = list(dict.fromkeys(m.model for m in measurements))
    asked = ", ".join(f"{key} {value}" for key, value in options.items())
    parts = [
        "# Curvature products",
        one_line(machine),
        f"Options: {asked}.",
        INTRODUCTION,
        "## Summary",
        summary_table(comparisons),
        *(fastest_table(comparisons, product) for product in PRODUCTS),
        block_table(measurements),
        memory_table(measurements),
        *(model_section([m for m in measurements if m.model == model]) for model in models),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(comparisons: list[Comparison]) -> str:
    """Geometric means over the models."""
    rows = [
        "Time of Hesse's fastest mode over a rival's: geometric mean over the models (range).",
        "",
        f"| product | {' | '.join(RIVALS.values())} |",
        f"|---|{'---|' * len(RIVALS)}",
    ]
    for product, means in geometric_means(comparisons).items():
        rows.append(f"| {PRODUCTS[product]} | {' | '.join(means.values())} |")
    return "\n".join(rows)


def fastest_table(comparisons: list[Comparison], product: tuple[str, int]) -> str:
    """The fastest of both sides on every model."""
    ours = [c for c in comparisons if (c.quantity, c.vectors) == product]
    if not ours:
        return ""
    rows = [
        f"### Fastest: {PRODUCTS[product]}",
        "",
        "| model | gradient ms | Hesse | gradients | peer | gradients | Hesse / peer "
        "| Hesse / curvlinops |",
        "|---|--:|---|--:|---|--:|--:|--:|",
    ]
    return "\n".join([*rows, *map(_fastest_row, ours)])


def _fastest_row(c: Comparison) -> str:
    return (
        f"| {c.model} | {1e3 * c.gradient:.2f} | {_best(c, c.hesse)} | {_best(c, c.peer)} "
        f"| {_ratio(c.ratio('peer'))} | {_ratio(c.ratio('curvlinops'))} |"
    )


def _best(comparison: Comparison, best: Best | None) -> str:
    if best is None:
        return "- | -"
    ratio = best.seconds / comparison.vectors / comparison.gradient
    return f"{best.name} | {ratio:.2f}"


def _ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def model_section(measurements: list[Measurement]) -> str:
    """The table of one model, and who did not take part, with the reason."""
    gradient = next((m.median for m in measurements if m.subject.name == REFERENCE), None)
    rows = [
        f"## {measurements[0].model}",
        "",
        "| subject | ms | quartiles | times | gradients | error | first s | first MiB | MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows += [_row(m, gradient) for m in measurements if m.seconds]
    failed = _grouped("**failed**", {m.subject.name: m.failed for m in measurements if m.failed})
    skipped = _grouped("skipped", {m.subject.name: m.skipped for m in measurements if m.skipped})
    return "\n".join([*rows, "", *failed, *skipped]).rstrip()


def _grouped(what: str, reasons: dict[str, str]) -> list[str]:
    """One line for every reason."""
    names = {reason: [n for n, r in reasons.items() if r == reason] for reason in reasons.values()}
    return [f"- {what}: {', '.join(ours)}: {reason}" for reason, ours in names.items()]


def _row(m: Measurement, gradient: float | None) -> str:
    first, third = m.quartiles
    ratio = _ratio(m.median / m.subject.vectors / gradient if gradient else None)
    error = f"**wrong: {m.error:.0e}**" if m.wrong else f"{m.error:.0e}"
    return (
        f"| {m.subject.name} | {1e3 * m.median:.2f} | {1e3 * first:.2f} to {1e3 * third:.2f} "
        f"| {len(m.seconds)} | {ratio} | {error} | {m.first_call:.2f} "
        f"| {_mebibytes(m.peak_bytes)} | {_mebibytes(m.repeated_bytes)} |"
    )


def _mebibytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:.1f}"


def raw(machine: dict, options: dict, measurements: list[Measurement]) -> str:
    """Everything, as JSON."""
    records = [
        {
            "model": m.model,
            "subject": m.subject.name,
            "library": m.subject.library,
            "quantity": m.subject.quantity,
            "vectors": m.subject.vectors,
            "first_call": m.first_call,
            "seconds": m.seconds,
            "error": m.error,
            "peak_bytes": m.peak_bytes,
            "repeated_bytes": m.repeated_bytes,
            "skipped": m.skipped,
            "failed": m.failed,
        }
        for m in measurements
    ]
    comparisons = [asdict(c) for c in compare(measurements)]
    report = {"machine": machine, "options": options, "measurements": records}
    return json.dumps(report | {"comparisons": comparisons}, indent=1) + "\n"


def write(
    folder: Path, machine: dict, options: dict, measurements: list[Measurement]
) -> list[Path]:
    """products.md and products.json."""
    paths = [folder / "products.md", folder / "products.json"]
    paths[0].write_text(markdown(machine, options, measurements), encoding="utf-8")
    paths[1].write_text(raw(machine, options, measurements), encoding="utf-8")
    return paths
