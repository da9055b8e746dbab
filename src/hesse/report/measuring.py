# SPDX-License-Identifier: Apache-2.0
"""`hesse curvature FILE`: the curvature of somebody's model, measured and shown on a page.

The file is a Python script that leaves a `risk`, a `hesse.Risk`; or a function `f` and a point `x`.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from hesse.curvature.dry_run import OPERATORS, TITLES, plan
from hesse.errors import ArgumentError, check_choice, check_count
from hesse.estimators import Estimate, SpectralDensity, spectral_density, trace
from hesse.krylov import Eigenpairs, eigsh
from hesse.operators.algebra import LinearOperator
from hesse.report import plots
from hesse.report.page import write_page
from hesse.report.section import Section, figure, print_section
from hesse.report.spectrum import eigenvalue_table, on_negative_curvature
from hesse.risk.risk import Risk

_CURVATURES = ("hessian", "ggn")


def measure_file(
    file: Path,
    output: Path,
    *,
    curvature: Literal["hessian", "ggn"] = "hessian",
    eigenvalues: int = 10,
    rtol: float = 1e-2,
    seconds: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path | None:
    """Measure extreme eigenvalues, trace and spectral density, and write output/curvature.html.

    Args:
        file: the script.
        output: the folder of the page, and of checkpoints from which the same command goes on.
        curvature: of which matrix.
        eigenvalues: how many of the largest; a third as many of the smallest.
        rtol: relative accuracy of eigenvalues and trace.
        seconds: limit of each of the four measurements.
        seed: of the random vectors.
        progress: show bars.

    Returns:
        The page. Ranks of a distributed run other than the first return None.

    Raises:
        HesseError: the file leaves no risk and no f and x; as `eigsh`.
    """
    check_choice("curvature", curvature, _CURVATURES)
    check_count("eigenvalues", eigenvalues, 1)
    f, x = problem_of(file)
    ranks = getattr(f, "ranks", None)
    speaks = ranks is None or ranks.rank == 0
    console = Console(quiet=not speaks)
    if ranks is None:
        console.print(repr(plan(f, x, curvature=curvature)), "", highlight=False, soft_wrap=True)
    A = OPERATORS[curvature](f, x)
    k = min(eigenvalues, A.shape[0])
    output.mkdir(parents=True, exist_ok=True)

    def options(name: str) -> dict[str, Any]:
        return {
            "generator": torch.Generator().manual_seed(seed),
            "max_seconds": seconds,
            "progress": progress and speaks,
            "checkpoint": output / f"{file.stem}-{curvature}-{name}.safetensors",
        }

    with _of_this_command(output):
        few = max(1, k // 3)
        largest = eigsh(A, k, "LA", rtol=rtol, **options(f"largest-{k}"))
        smallest = eigsh(A, few, "SA", rtol=10 * rtol, **options(f"smallest-{few}"))
        estimate = trace(A, rtol=rtol, **options("trace"))
        density = spectral_density(A, **options("density"))
    section = _section(curvature, A, largest, smallest, estimate, density)
    print_section(console, section)
    if not speaks:
        return None
    page = write_page(
        output / "curvature.html",
        title=f"Curvature of {file.name}",
        heading=f"Curvature of {file.name}",
        lead=repr(A).partition("\n")[0],
        sections=[section],
        settings=f"Seed {seed}, relative accuracy {rtol:g}"
        + ("." if seconds is None else f", at most {seconds:g} s for each measurement."),
        command=f"hesse curvature {file.name} --curvature {curvature} --seed {seed}",
        note="The files beside this page are checkpoints: the same command goes on from them.",
    )
    console.print(f"Page: [bold]{page}[/bold]")
    return page


@contextmanager
def _of_this_command(output: Path) -> Iterator[None]:
    """Say what to do where the folder has checkpoints of another run."""
    try:
        yield
    except ArgumentError as error:
        if error.expected.startswith("checkpoint="):
            error.remedy = (
                "To start again give another folder as --output, or delete the checkpoints, "
                f"{output / '*.safetensors'}. A run goes on for the same model and options."
            )
        raise


def problem_of(file: Path) -> tuple[Any, Any]:
    """(f, x) that a script leaves; x is None for a risk, whose model is taken as it is."""
    if not file.is_file():
        raise ArgumentError(
            expected="a Python script that leaves a `risk`, or a function `f` and a point `x`",
            got=f"no file {str(file)!r}",
            remedy="Give the path of the script.",
        )
    names = runpy.run_path(str(file), run_name="hesse_problem")
    if isinstance(names.get("risk"), Risk):
        return names["risk"], None
    if callable(names.get("f")) and "x" in names:
        return names["f"], names["x"]
    found = ", ".join(name for name in names if not name.startswith("_")) or "nothing"
    raise ArgumentError(
        expected="a script that leaves a `risk`, a hesse.Risk, or a function `f` and a point `x`",
        got=f"{file.name}, which leaves {found}",
        remedy="Add a line such as risk = hesse.Risk(model, loss, data). What it does under "
        "if __name__ == '__main__' is left out.",
    )


def _section(
    curvature: str,
    A: LinearOperator,
    largest: Eigenpairs,
    smallest: Eigenpairs,
    estimate: Estimate,
    density: SpectralDensity,
) -> Section:
    products = largest.products + smallest.products + estimate.products + density.products
    return Section(
        title=f"The {TITLES[curvature]}",
        text=f"{A.shape[0]:,} variables, {products:,} products; the matrix was never formed. Each "
        "eigenvalue has a bound: an eigenvalue of the matrix lies within it.",
        tables=[eigenvalue_table(largest, smallest)],
        verdict=f"Trace {estimate.value:.4g}, {_uncertainty(estimate)}. "
        + (on_negative_curvature(smallest) if curvature == "hessian" else ""),
        figures=[
            figure(
                plots.densities({"all eigenvalues": density}),
                "Density of eigenvalues, smoothed, with a band of two standard errors, on a "
                "logarithmic axis.",
            )
        ],
    )


def _uncertainty(estimate: Estimate) -> str:
    error = estimate.standard_error
    return f"with standard error {error:.2g}" if error else "exact"
