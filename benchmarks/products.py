"""Hessian and Gauss-Newton products: Hesse's modes and its peers on networks and functions.

What is measured, and how: `measure` (interleaved times), `oracle` (errors), `memory` (peaks),
`summary` (who is fastest), `report` (how to read the tables).
"""

from __future__ import annotations

import sys
import time
import warnings

import torch

from benchmarks import plots, report
from benchmarks.case import Case
from benchmarks.machine import describe_machine
from benchmarks.measure import Measurement, measure
from benchmarks.memory import peaks
from benchmarks.models import MODELS
from benchmarks.options import chosen, parse, parser
from benchmarks.subjects.subject import Subject


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the report, and write it with the raw numbers and a picture."""
    options = parse(_parser(), arguments or [])
    warnings.simplefilter("ignore")  # what fails is reported; torch warns of prototypes
    subjects = chosen(options.subjects, options.compiled)
    machine = describe_machine()
    asked = {"repeats": options.repeats, "budget": options.budget, "compiled": options.compiled}
    measurements: list[Measurement] = []
    for name in options.models or MODELS:
        measurements += _measure(name, subjects, options)
        report.write(options.output, machine, asked, measurements)
    print(report.markdown(machine, asked, measurements))
    if not options.no_plot:
        _plot(options.output / "products.png", measurements)


def _parser():
    options = parser("products", __doc__.splitlines()[0])
    options.add_argument(
        "--compiled", action="store_true", help="also what torch compiles, which takes minutes"
    )
    options.add_argument("--repeats", type=int, default=30, help="times that a product is timed")
    options.add_argument(
        "--budget", type=float, default=15.0, help="seconds for the times of a model, about"
    )
    options.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    options.add_argument("--no-plot", action="store_true", help="leave out the picture")
    return options


def _measure(model: str, subjects: list[Subject], options) -> list[Measurement]:
    start = time.perf_counter()
    print(f"{model} ... ", end="", file=sys.stderr, flush=True)
    try:
        case = Case.of(MODELS[model]())
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
        return []
    found = {} if options.no_memory else peaks(model, subjects)
    measurements = measure(case, subjects, options.repeats, options.budget)
    for m in measurements:
        if m.subject.name in found:
            m.peak_bytes, m.repeated_bytes = found[m.subject.name]
    if options.compiled:
        torch.compiler.reset()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return measurements


def _plot(path, measurements: list[Measurement]) -> None:
    try:
        plots.plot(path, measurements)
    except ImportError as error:
        print(f"no picture: {error}", file=sys.stderr)
