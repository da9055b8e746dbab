"""`memory_budget=` in units of the gradient's peak: whether it is kept, and what it costs."""

from __future__ import annotations

import hesse
from benchmarks.case import Case
from benchmarks.engine.study import THREE, Cell, Settings, Study, peak, ratio
from benchmarks.measure import Measurement
from benchmarks.models import MODELS
from benchmarks.subjects.peers_backward import prepare_gradient
from benchmarks.subjects.subject import InProcess, Run, flat

BUDGETS = (4.0, 2.0, 1.5, 1.25)
"""In gradients."""

FREE = "none"


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """Without a budget, then with smaller and smaller ones."""
    case = Case.of(MODELS[model]())
    gradient = peak(lambda: prepare_gradient(case))
    risk = case.problem.risk()  # its parameters are the caller's
    peaks: dict[str, int] = {FREE: peak(lambda: _run(case, risk, None))}
    runs: dict[str, Run] = {FREE: _run(case, risk, None)}
    refusals: dict[str, str] = {}
    for budget in BUDGETS:
        name, size = f"{budget:g}", int(budget * gradient)
        try:
            peaks[name], runs[name] = (
                peak(lambda size=size: _run(case, risk, size)),
                _run(case, risk, size),
            )
        except hesse.HesseError as error:
            refusals[name] = f"expected {error.expected}"
    times = settings.measure(case, runs)
    kept = [[model, name, *_kept(name, peaks[name], gradient, times)] for name in runs]
    return [*kept, *([model, name, *[None] * 5, text] for name, text in refusals.items())]


def _kept(name: str, size: int, gradient: int, times: dict[str, Measurement]) -> list[Cell]:
    share = None if name == FREE else size / gradient / float(name)
    mine, free = times[name], times[FREE]
    seconds = [1e3 * mine.median, ratio(mine, free)]
    return [size / 1e6, size / gradient, share, *seconds, None]


def _run(case: Case, risk: hesse.Risk, budget: int | None) -> Run:
    params = case.problem.params
    H = hesse.hessian_operator(risk, params, mode="traced-split", memory_budget=budget)
    return InProcess(lambda: H @ case.v, flat)


STUDY = Study(
    "Budgets",
    "`memory_budget=` in gradients. The peak is that of making the operator, with its trials, and "
    "of three products with all their checks; time is that of a later product.",
    (
        *("model", "budget", "peak MB", "peak / gradient", "peak / budget", "ms"),
        *("time / no budget", "refusal"),
    ),
    THREE,
    rows,
)
