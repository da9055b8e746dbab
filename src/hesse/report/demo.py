# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train, minimise, measure the curvature; tables on the console, and a page."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from hesse.report import plots
from hesse.report.digits import autoencoder, code, digits
from hesse.report.minimising import (
    TARGET,
    GradientCurve,
    by_lbfgsb,
    by_newton_cg,
    logistic_regression,
)
from hesse.report.page import render
from hesse.report.spectrum import Spectrum, measure_spectrum
from hesse.report.training import ADAMW, Curve, train_adamw, train_hessian_free, train_lbfgs


@dataclass(frozen=True)
class Effort:
    """How long everything runs; fixed numbers of steps, so that a seed fixes the result."""

    hessian_free_steps: int = 150
    adamw_epochs: int = 2000
    lbfgs_iterations: int = 3000
    lanczos_steps: int = 64


QUICK = Effort(hessian_free_steps=3, adamw_epochs=4, lbfgs_iterations=8, lanczos_steps=8)


@dataclass
class Section:
    """One section of the report: text, tables, figures."""

    title: str
    text: str
    tables: list[dict[str, Any]]
    verdict: str
    figures: list[dict[str, str]]


def run_demo(
    output: Path, *, seed: int = 0, effort: Effort | None = None, progress: bool = True
) -> Path:
    """Run all three parts and write output/report.html; Ctrl-C keeps the finished parts."""
    effort = effort or Effort()
    console = Console()
    pixels, labels = digits()
    sections: list[Section] = []
    models: list[torch.nn.Sequential] = []
    parts: list[Callable[[Bars], Section]] = [
        lambda bars: train(pixels, labels, seed, effort, bars, models),
        lambda bars: minimise(bars),
        lambda bars: measure(models[0], pixels, seed, effort, bars),
    ]
    try:
        with _bars(console, progress) as bars:
            sections.extend(part(bars) for part in parts)  # an interrupt keeps the finished ones
    except KeyboardInterrupt:
        console.print("Interrupted: the report holds the finished parts.")
    for section in sections:
        _print(console, section)
    path = _write(output, sections, seed, effort)
    console.print(f"\nReport: [bold]{path}[/bold]")
    return path


Bars = Callable[[str], Callable[[float], None]]
"""title -> a function that sets its progress bar to a fraction."""


def train(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    effort: Effort,
    bars: Bars,
    models: list[torch.nn.Sequential],
) -> Section:
    """Part (a): the autoencoder. Appends the network trained by HessianFree to `models`."""
    newton = train_hessian_free(pixels, seed, effort.hessian_free_steps, bars("HessianFree"))
    adamw = train_adamw(pixels, seed, effort.adamw_epochs, bars("AdamW"))
    lbfgs = train_lbfgs(pixels, seed, effort.lbfgs_iterations, bars("L-BFGS"))
    models.append(newton.model)
    curves = [newton, adamw, lbfgs]
    pick = [int((labels == digit).nonzero()[0]) for digit in range(10)]
    rows = {"original": pixels[pick]}
    with torch.no_grad():
        rows |= {c.name: c.model(pixels[pick]).sigmoid() for c in (newton, adamw)}
    return Section(
        title="Train: a deep autoencoder with a two-dimensional code",
        text="1,797 digits of 8 x 8 pixels through 64-128-64-32-2-32-64-128-64 and back. From the "
        "same random start: HessianFree at its defaults, AdamW at the best of six settings "
        f"(learning rate {ADAMW['lr']:g}, batch {ADAMW['batch_size']}, cosine schedule), L-BFGS "
        "with 50 pairs. Error: squared, summed over pixels, on the training set.",
        tables=[
            {
                "head": ["optimiser", "error", "seconds", "gradient-equivalents"],
                "rows": [
                    [
                        c.name,
                        f"{c.errors[-1]:.3f}",
                        f"{c.seconds[-1]:.1f}",
                        f"{c.gradients[-1]:.0f}",
                    ]
                    for c in curves
                ],
            }
        ],
        verdict=training_verdict(newton, adamw, lbfgs),
        figures=[
            _figure(
                plots.training_curves(curves),
                "Training error against seconds and against work, where a gradient over all digits "
                "counts 1, a value 1/3, a Gauss-Newton product 4/3.",
            ),
            _figure(
                plots.reconstructions(rows),
                "The first digit of each kind, and what two numbers keep of it.",
            ),
            _figure(
                plots.code_scatter(
                    {c.name: code(c.model, pixels) for c in (newton, adamw)}, labels
                ),
                "The two numbers for every digit, coloured by its label, which training never saw.",
            ),
        ],
    )


def training_verdict(newton: Curve, adamw: Curve, lbfgs: Curve) -> str:
    """Who won, from the numbers."""
    best = min((newton, adamw, lbfgs), key=lambda curve: curve.errors[-1])
    words = [f"{best.name} ends lowest, at {best.errors[-1]:.3f}."]
    reached = newton.seconds_to(adamw.errors[-1])
    if reached is None:
        words.append(f"HessianFree did not reach AdamW's final error of {adamw.errors[-1]:.3f}.")
    else:
        words.append(
            f"HessianFree reached AdamW's final error of {adamw.errors[-1]:.3f} after "
            f"{reached:.1f} s, {reached / adamw.seconds[-1]:.0%} of AdamW's "
            f"{adamw.seconds[-1]:.1f} s."
        )
    common = min(newton.seconds[-1], adamw.seconds[-1])
    ours, theirs = newton.error_at(common), adamw.error_at(common)
    side = "below" if ours < theirs else "above"
    words.append(
        f"At equal seconds ({common:.1f} s) it is {abs(1 - ours / theirs):.0%} {side} AdamW "
        f"({ours:.3f} against {theirs:.3f})."
    )
    return " ".join(words)


def minimise(bars: Bars) -> Section:
    """Part (b): logistic regression."""
    risk = logistic_regression()
    for method in (by_newton_cg, by_lbfgsb):  # a first run outside of the clock, for the imports
        method(risk, lambda _: None)
    newton = by_newton_cg(risk, bars("Newton-CG"))
    quasi = by_lbfgsb(risk, bars("L-BFGS-B"))
    return Section(
        title="Minimise: logistic regression to eight digits",
        text="Ten classes, 650 parameters, float64, weight decay 1e-4, to a gradient of "
        f"{TARGET:g} times the first. Both see the same value and gradient; SciPy's L-BFGS-B "
        "keeps 20 pairs.",
        tables=[
            {
                "head": ["method", "relative gradient", "value", "seconds", "gradient-equivalents"],
                "rows": [
                    [
                        d.name,
                        f"{d.relative_gradients[-1]:.1e}",
                        f"{d.value:.10f}",
                        f"{d.seconds[-1]:.2f}",
                        f"{d.gradients:.0f}",
                    ]
                    for d in (newton, quasi)
                ],
            }
        ],
        verdict=minimising_verdict(newton, quasi),
        figures=[_figure(plots.gradient_curves([newton, quasi]), "How the gradient falls.")],
    )


def minimising_verdict(newton: GradientCurve, quasi: GradientCurve) -> str:
    """Who won, from the numbers."""
    late = [d.name for d in (newton, quasi) if not d.reached]
    if late:
        return f"Not at the target: {' and '.join(late)}."
    first, second = sorted((newton, quasi), key=lambda d: d.seconds[-1])
    leaner = min((newton, quasi), key=lambda d: d.gradients)
    return (
        f"{first.name} was faster, {first.seconds[-1]:.2f} s against {second.seconds[-1]:.2f} s; "
        f"{leaner.name} took less work."
    )


def measure(
    trained: torch.nn.Sequential, pixels: torch.Tensor, seed: int, effort: Effort, bars: Bars
) -> Section:
    """Part (c): the spectrum of the Hessian."""
    spectrum = measure_spectrum(
        autoencoder(seed), trained, pixels, seed, effort.lanczos_steps, bars("curvature")
    )
    return Section(
        title="Measure: the Hessian of the trained network",
        text=f"All {spectrum.n:,} parameters, the exact Hessian, never formed. Each eigenvalue has "
        "a bound: an eigenvalue of the Hessian lies within it.",
        tables=[_eigenvalue_table(spectrum)],
        verdict=f"Trace {spectrum.trace.value:.4g} with standard error "
        f"{spectrum.trace.standard_error:.2g} ({spectrum.trace.products} products). "
        + _on_negative_curvature(spectrum),
        figures=[
            _figure(
                plots.densities(spectrum.before, spectrum.after),
                "Density of eigenvalues, smoothed, with a band of two standard errors; note the "
                "logarithmic scale: nearly all directions are flat.",
            )
        ],
    )


def _eigenvalue_table(spectrum: Spectrum) -> dict[str, Any]:
    rows = []
    for name, pairs in (("largest", spectrum.largest), ("smallest", spectrum.smallest)):
        for value, residual, done in zip(
            pairs.values, pairs.residuals, pairs.converged, strict=True
        ):
            note = "yes" if done else "not yet"
            rows.append([name, f"{float(value):.5g}", f"{float(residual):.1e}", note])
    return {"head": ["end of the spectrum", "eigenvalue", "within", "converged"], "rows": rows}


def _on_negative_curvature(spectrum: Spectrum) -> str:
    value, bound = float(spectrum.smallest.values[0]), float(spectrum.smallest.residuals[0])
    if value + bound < 0.0:
        return "There are directions of negative curvature: this is no minimum yet."
    if value - bound > 0.0:
        return "No direction of negative curvature was found."
    return "Whether there is negative curvature is within the bound of the smallest: undecided."


def _figure(svg: str, caption: str) -> dict[str, str]:
    return {"svg": svg, "caption": caption}


def _print(console: Console, section: Section) -> None:
    for table in section.tables:
        shown = Table(title=section.title, title_justify="left")
        for i, head in enumerate(table["head"]):
            shown.add_column(head, justify="left" if i == 0 else "right")
        for row in table["rows"]:
            shown.add_row(*row)
        console.print(shown)
    console.print(section.verdict, "")


def _write(output: Path, sections: list[Section], seed: int, effort: Effort) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "report.html"
    html = render(
        sections=sections,
        settings=f"Seed {seed}. HessianFree {effort.hessian_free_steps} steps, AdamW "
        f"{effort.adamw_epochs} epochs, L-BFGS {effort.lbfgs_iterations} iterations, Lanczos "
        f"{effort.lanczos_steps} steps for each of 4 probes.",
        versions=f"Hesse {version('hesse')}, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.get_num_threads()} threads.",
        command=f"hesse demo --seed {seed}",
    )
    path.write_text(html, encoding="utf-8")
    return path


@contextmanager
def _bars(console: Console, enabled: bool) -> Iterator[Bars]:
    columns = (TextColumn("{task.description:>12}"), BarColumn(40), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not enabled) as progress:

        def bar(title: str) -> Callable[[float], None]:
            task = progress.add_task(title, total=1.0)
            return lambda fraction: progress.update(task, completed=fraction)

        yield bar
