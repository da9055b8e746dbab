"""The command: which studies, on which models, and where the report goes."""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import hesse
from benchmarks.engine import (
    batches,
    blocks,
    budgets,
    compiling,
    layer_norm,
    libraries,
    peaks,
    precision,
    table,
    tracer,
    tracing,
)
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.machine import describe_machine
from benchmarks.models import MODELS

STUDIES = {
    "budgets": budgets.STUDY,
    "precision": precision.STUDY,
    "tracing": tracing.STUDY,
    "tracer": tracer.STUDY,
    "layer-norm": layer_norm.STUDY,
    "libraries": libraries.STUDY,
    "blocks": blocks.STUDY,
    "batches": batches.STUDY,
    "memory": peaks.STUDY,
    "compiling": compiling.STUDY,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the studies, print the report, and write it with the raw numbers."""
    options = _parser().parse_args(arguments or [])
    if options.threads:
        torch.set_num_threads(options.threads)
    # A compiler that finds its results of yesterday says nothing about the first call.
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    warnings.simplefilter("ignore")  # what fails is reported
    options.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(options.repeats, options.budget, options.compiled)
    machine, results = describe_machine(), {}
    _warm_up()
    for name in options.only or [n for n in STUDIES if settings.compiled or n != "compiling"]:
        study = STUDIES[name]
        results[name] = study, _rows(name, study, options.models or study.models, settings)
        table.write(options.output, machine, results)
    print(table.markdown(machine, results))


def _parser() -> argparse.ArgumentParser:
    what = "What products by the engine of Hesse cost in time and memory."
    parser = argparse.ArgumentParser("python -m benchmarks engine", description=what)
    parser.add_argument("--only", type=_names, metavar="STUDY,...", help=f"of {', '.join(STUDIES)}")
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="also what torch compiles, which takes minutes"
    )
    parser.add_argument("--repeats", type=int, default=15, help="times that a product is timed")
    parser.add_argument(
        "--budget", type=float, default=5.0, help="seconds for the times of a model, about"
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--output", type=Path, default=Path("hesse-bench"), help="folder")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in STUDIES:
            raise argparse.ArgumentTypeError(f"no study {name!r}; there are {', '.join(STUDIES)}")
    return names


def _rows(name: str, study: Study, models: Sequence[str], settings: Settings) -> list[list[Cell]]:
    """Of all models but those whose library is missing."""
    rows: list[list[Cell]] = []
    for model in models:
        start = time.perf_counter()
        print(f"{name}, {model} ... ", end="", file=sys.stderr, flush=True)
        try:
            rows += study.rows(model, settings)
        except ImportError as error:
            print(f"left out: {error} ", end="", file=sys.stderr)
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return rows


def _warm_up() -> None:
    """The first trace of a process imports and starts much of torch."""
    x = torch.ones(10)
    hesse.hessian_operator(lambda x: (x**4).sum(), x, mode="traced-split").matvec(x)
