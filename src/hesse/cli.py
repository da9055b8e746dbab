# SPDX-License-Identifier: Apache-2.0
"""The command line: `hesse curvature FILE`, `hesse demo`; or `python -m hesse demo`."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from importlib.metadata import version as version_of
from pathlib import Path

from hesse.errors import ArgumentError, HesseError, MissingExtraError
from hesse.report.processes import group_of_script, number, rank_and_size

EXTRA = {"jinja2", "matplotlib", "rich", "scipy", "sklearn", "threadpoolctl", "typer"}
"""The packages of the extra hesse[demo], by import name."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command `hesse`; of several processes on a machine the first one speaks."""
    with ExitStack() as silence:
        if number("LOCAL_RANK", number("RANK", 0)) > 0:
            silence.enter_context(redirect_stdout(io.StringIO()))
            silence.enter_context(redirect_stderr(io.StringIO()))
        try:
            application(silence.close)(arguments, prog_name="hesse")
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in EXTRA:
                raise
            missing = MissingExtraError(
                "hesse (command line)",
                expected="the packages of the extra hesse[demo]",
                got=str(error),
                remedy="pip install 'hesse[demo]'",
            )
            print(missing, file=sys.stderr)
            sys.exit(1)


def application(speak: Callable[[], None] = lambda: None):
    """The typer application; needs the packages of the extra hesse[demo].

    Args:
        speak: called where a process has something to say that others have not.
    """
    import typer

    app = typer.Typer(
        name="hesse", add_completion=False, no_args_is_help=True, help="Curvature for PyTorch."
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"hesse {version_of('hesse')}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True),
    ) -> None:
        """Curvature for PyTorch."""

    @app.command()
    def demo(
        output: str = typer.Option("hesse-demo", help="Folder for the report."),
        seed: int = typer.Option(0, help="Seed of the random start."),
        quick: bool = typer.Option(False, help="A few steps only, to see that it works."),
        progress: bool = typer.Option(True, help="Show progress bars."),
    ) -> None:
        """Train, minimise and look at curvature on real digits; write an HTML report."""
        from hesse.report.cores import leave_busy_cores
        from hesse.report.demo import QUICK, run_demo

        if number("WORLD_SIZE", 1) > 1:
            print(_of_one_process("demo"), file=sys.stderr)
            raise typer.Exit(1)
        leave_busy_cores()
        run_demo(Path(output), seed=seed, effort=QUICK if quick else None, progress=progress)

    @app.command()
    def curvature(
        file: str = typer.Argument(help="A script that leaves a `risk`, or `f` and `x`."),
        output: str = typer.Option("hesse-curvature", help="Folder for the page."),
        curvature: str = typer.Option("hessian", help="hessian or ggn."),
        eigenvalues: int = typer.Option(10, help="How many of the largest."),
        rtol: float = typer.Option(0.01, help="Relative accuracy."),
        seconds: float | None = typer.Option(None, help="Limit of each measurement."),
        seed: int = typer.Option(0, help="Seed of the random vectors."),
        progress: bool = typer.Option(True, help="Show progress bars."),
    ) -> None:
        """Measure eigenvalues, trace and spectral density of a model; write an HTML page."""
        from hesse.ranks import is_said_elsewhere
        from hesse.report.measuring import measure_file

        speak()
        try:
            with group_of_script():
                measure_file(
                    *(Path(file), Path(output)),
                    curvature=curvature,  # pyright: ignore[reportArgumentType]  # checked there
                    eigenvalues=eigenvalues,
                    rtol=rtol,
                    seconds=seconds,
                    seed=seed,
                    progress=progress,
                )
        except HesseError as error:
            error.call = error.call or f"hesse curvature {file}"
            rank, _ = rank_and_size()
            if rank == 0:
                print(error, file=sys.stderr)
            elif not is_said_elsewhere(error):
                print(f"rank {rank}: {error}", file=sys.stderr)
            raise typer.Exit(1) from error

    return app


def _of_one_process(command: str) -> ArgumentError:
    return ArgumentError(
        f"hesse {command}",
        expected="one process",
        got=f"{number('WORLD_SIZE', 1)}, which torchrun started",
        remedy=f"Start it without torchrun: hesse {command}.",
    )
