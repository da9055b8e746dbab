# SPDX-License-Identifier: Apache-2.0
"""The demonstration: train, minimise, measure the curvature; tables on the console, and a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from hesse.report import plots
from hesse.report.digits import autoencoder, code, digits
from hesse.report.minimising import (
    TARGET,
    GradientCurve,
    by_lbfgsb,
    by_newton_cg,
    logistic_regression,
)
from hesse.report.page import write_page
from hesse.report.section import Bars, Section, bars_on, figure, print_section
from hesse.report.spectrum import eigenvalue_table, measure_spectrum, on_negative_curvature
from hesse.report.training import ADAMW, Curve, train_adamw, train_hessian_free, train_lbfgs


@dataclass(frozen=True)
class Effort:
    """How long everything runs; fixed numbers of steps, so that a seed fixes the result."""

    hessian_free_steps: int = 150
    adamw_epochs: int = 2000
    lbfgs_iterations: int = 3000
    lanczos_steps: int = 64


QUICK = Effort(hessian_free_steps=3, adamw_epochs=4, lbfgs_iterations=8, lanczos_steps=8)


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
        with bars_on(console, progress) as bars:
            sections.extend(part(bars) for part in parts)  # an interrupt keeps the finished ones
    except KeyboardInterrupt:
        console.print("Interrupted: the report holds the finished parts.")
    for section in sections:
        print_section(console, section)
    path = _write(output, sections, seed, effort)
    console.print(f"\nReport: [bold]{path}[/bold]")
    return path


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
        "same random start: HessianFree, on a sixth of the digits at first, AdamW at the best of "
        f"six settings (learning rate {ADAMW['lr']:g}, batch {ADAMW['batch_size']}, cosine "
        "schedule), L-BFGS with 50 pairs. Error: squared, summed over pixels, on the training set.",
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
            figure(
                plots.training_curves(curves),
                "Training error against seconds and against work, where a gradient over all digits "
                "counts 1, a value 1/3, a Gauss-Newton product 4/3.",
            ),
            figure(
                plots.reconstructions(rows),
                "The first digit of each kind, and what two numbers keep of it.",
            ),
            figure(
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
        figures=[figure(plots.gradient_curves([newton, quasi]), "How the gradient falls.")],
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
        tables=[eigenvalue_table(spectrum.largest, spectrum.smallest)],
        verdict=f"Trace {spectrum.trace.value:.4g} with standard error "
        f"{spectrum.trace.standard_error:.2g} ({spectrum.trace.products} products). "
        + on_negative_curvature(spectrum.smallest),
        figures=[
            figure(
                plots.densities(
                    {"at the random start": spectrum.before, "after training": spectrum.after}
                ),
                "Density of eigenvalues, smoothed, with a band of two standard errors; note the "
                "logarithmic scale: nearly all directions are flat.",
            )
        ],
    )


def _write(output: Path, sections: list[Section], seed: int, effort: Effort) -> Path:
    return write_page(
        output / "report.html",
        title="Hesse: a demonstration",
        heading="Curvature at work",
        lead="Real digits, a deep autoencoder, a logistic regression: what Hessian-vector products "
        "buy, measured on this machine, and who won.",
        sections=sections,
        settings=f"Seed {seed}. HessianFree {effort.hessian_free_steps} steps, AdamW "
        f"{effort.adamw_epochs} epochs, L-BFGS {effort.lbfgs_iterations} iterations, Lanczos "
        f"{effort.lanczos_steps} steps for each of 4 probes.",
        command=f"hesse demo --seed {seed}",
        note="The same seed gives the same errors after the same number of steps; seconds depend "
        "on the machine.",
    )
