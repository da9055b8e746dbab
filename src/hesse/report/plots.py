# SPDX-License-Identifier: Apache-2.0
"""The report's figures, as SVG text."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from hesse.estimators import SpectralDensity
from hesse.report.minimising import GradientCurve
from hesse.report.training import Curve

COLOURS = {
    "HessianFree": "#0b6e4f",
    "AdamW": "#c8553d",
    "L-BFGS": "#8a7090",
    "Newton-CG": "#0b6e4f",
    "L-BFGS-B (SciPy)": "#c8553d",
}
INK, GRID = "#33413c", "#d9dfdb"
STYLE = {
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "hesse",
    "font.family": "sans-serif",
}


def training_curves(curves: list[Curve]) -> str:
    """Error against seconds, and against gradient-equivalents."""
    figure, axes = _figure(1, 2, (9.6, 3.6))
    for curve in curves:
        style: dict[str, Any] = {"color": COLOURS[curve.name], "linewidth": 1.8}
        axes[0].plot(curve.seconds, curve.errors, label=curve.name, **style)
        axes[1].plot(curve.gradients, curve.errors, **style)
    axes[0].set(xlabel="seconds", ylabel="squared error per digit", yscale="log")
    axes[1].set(xlabel="gradient-equivalents", yscale="log")
    for axis in axes:
        axis.set_yticks([0.3, 0.5, 1, 2, 4], ["0.3", "0.5", "1", "2", "4"], minor=False)
        axis.minorticks_off()
    axes[0].legend(frameon=False)
    return _svg(figure)


def gradient_curves(curves: list[GradientCurve]) -> str:
    """Relative gradient against seconds."""
    figure, (axis,) = _figure(1, 1, (6.2, 3.4))
    for curve in curves:
        axis.plot(
            curve.seconds,
            curve.relative_gradients,
            color=COLOURS[curve.name],
            linewidth=1.6,
            label=curve.name,
        )
    axis.set(xlabel="seconds", ylabel="|gradient| / |first gradient|", yscale="log")
    axis.legend(frameon=False)
    return _svg(figure)


def code_scatter(codes: dict[str, Tensor], labels: Tensor) -> str:
    """The 2-D code of every digit, coloured by its label, for each model."""
    figure, axes = _figure(1, len(codes), (9.6, 4.4))
    palette = mpl.colormaps["tab10"]
    for axis, (name, points) in zip(axes, codes.items(), strict=True):
        for digit in range(10):
            chosen = points[labels == digit].numpy()
            axis.scatter(chosen[:, 0], chosen[:, 1], s=5, color=palette(digit), linewidths=0)
            if len(chosen):
                x, y = np.median(chosen, axis=0)
                axis.text(x, y, str(digit), fontsize=13, fontweight="bold", color=INK)
        axis.set_title(name, color=COLOURS.get(name, INK))
        axis.set(xticks=[], yticks=[])
    return _svg(figure)


def reconstructions(rows: dict[str, Tensor]) -> str:
    """Rows of 8x8 digits."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(9.6, 0.95 * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            axis.imshow(
                image.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest"
            )
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", color=COLOURS.get(name, INK))
    return _svg(figure)


def densities(titled: dict[str, SpectralDensity]) -> str:
    """Spectral densities side by side, each with a band of two standard errors."""
    figure, axes = _figure(1, len(titled), (4.8 * len(titled), 3.4))
    for axis, (title, density) in zip(axes, titled.items(), strict=True):
        peak = float(density.density.max())
        floor = 1e-7 * peak
        low = (density.density - 2 * density.standard_error).clamp(min=floor)
        high = (density.density + 2 * density.standard_error).clamp(min=floor)
        grid = density.grid.numpy()
        axis.fill_between(grid, low.numpy(), high.numpy(), color="#0b6e4f", alpha=0.25, linewidth=0)
        axis.plot(grid, density.density.clamp(min=floor).numpy(), color="#0b6e4f", linewidth=1.3)
        axis.set(yscale="log", ylim=(2 * floor, 2 * peak), xlabel="eigenvalue", title=title)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
    axes[0].set_ylabel("density")
    return _svg(figure)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)[0]
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element, without the file's header."""
    figure.patch.set_alpha(0.0)
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
