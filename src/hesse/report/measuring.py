# SPDX-License-Identifier: Apache-2.0
"""`hesse curvature FILE`: the curvature of somebody's model, measured and shown on a page.

The file is a Python script that leaves a `risk`, a `hesse.Risk`; or a function `f` and a point `x`.
Under torchrun every process runs it, and the risk is one that they share: all measure together, the
first one prints and writes.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from hesse.curvature.dry_run import OPERATORS, TITLES, plan
from hesse.errors import ArgumentError, check_choice, check_count
from hesse.estimators import Estimate, SpectralDensity, spectral_density, trace
from hesse.krylov import Eigenpairs, eigsh
from hesse.operators.algebra import LinearOperator
from hesse.ranks import Ranks, alike
from hesse.report import plots
from hesse.report.page import write_page
from hesse.report.processes import rank_and_size, said_once
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
        HesseError: the file leaves no risk and no f and x; there are several processes, which do
            not share the risk; as `eigsh`.
    """
    with said_once():
        check_choice("curvature", curvature, _CURVATURES)
        check_count("eigenvalues", eigenvalues, 1)
    f, x = problem_of(file)
    ranks: Ranks | None = getattr(f, "ranks", None)
    speaks = ranks is None or ranks.rank == 0
    console = Console(quiet=not speaks)
    console.print(repr(plan(f, x, curvature=curvature)), "", highlight=False, soft_wrap=True)
    A = OPERATORS[curvature](f, x)
    k = min(eigenvalues, A.shape[0])
    with alike(ranks):
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
    write = write_page if speaks else _write_nothing
    with alike(ranks):
        page = write(
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


def _write_nothing(path: Path, **content: Any) -> None:
    """Leave the page to the first process."""


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
    with said_once():
        if not file.is_file():
            raise ArgumentError(
                expected="a Python script that leaves a `risk`, or a function `f` and a point `x`",
                got=f"no file {str(file)!r}",
                remedy="Give the path of the script.",
            )
    names = runpy.run_path(str(file), run_name="hesse_problem")
    with _alike_after_the_script():
        f, x = _found_in(names, file)
        _check_is_shared(f, rank_and_size()[1])
    return f, x


def _alike_after_the_script() -> AbstractContextManager[None]:
    """Within it, an error in one process is one in all, if the script has let them meet."""
    import torch.distributed as dist

    if rank_and_size()[1] > 1 and dist.is_initialized():
        return Ranks(dist.group.WORLD).alike()
    return said_once()


def _found_in(names: dict[str, Any], file: Path) -> tuple[Any, Any]:
    """(f, x) among the names that a script leaves."""
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


def _check_is_shared(f: Any, size: int) -> None:
    """Raise unless all processes, so many, share the risk; each would write its own page."""
    import torch.distributed as dist

    ranks: Ranks | None = getattr(f, "ranks", None)
    if ranks is not None and not dist.is_initialized():
        raise ArgumentError(
            expected="a script that leaves the process group as it is",
            got="one that has destroyed it",
            remedy="Leave out torch.distributed.destroy_process_group(): the risk is still to be "
            "measured.",
        )
    if size == (1 if ranks is None else ranks.size):
        return
    one = "a risk without group=" if isinstance(f, Risk) else "a function, which is of one process"
    raise ArgumentError(
        expected=f"a `risk` that all {size} processes share",
        got=one if ranks is None else f"one that {ranks.size} of them share",
        remedy="Give hesse.Risk(..., group=torch.distributed.group.WORLD), and each process its "
        "part of the data; or start one process, without torchrun.",
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
