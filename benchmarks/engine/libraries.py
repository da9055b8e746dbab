"""Traced products with torch's own choice of kernels, and with those that Hesse chooses."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

from benchmarks.case import Case
from benchmarks.engine.study import Cell, Settings, Study, ratio
from benchmarks.models import MODELS
from benchmarks.subjects.hesse_modes import prepare_hessian
from benchmarks.subjects.subject import Run
from hesse.engine import trace_product
from hesse.tracing.backends import onednn


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row."""
    case = Case.of(MODELS[model]())
    runs = {
        "torch's": _run(case, matrices=False, convolutions=False),
        "matrices": _run(case, matrices=True, convolutions=False),
        "both": _run(case, matrices=True, convolutions=True),
    }
    times = settings.measure(case, runs)
    before, matrices, both = (times[name] for name in runs)
    shares = [ratio(matrices, before), ratio(both, before)]
    return [[model, 1e3 * before.median, *shares, before.error, both.error]]


def _run(case: Case, *, matrices: bool, convolutions: bool) -> Run:
    """A traced product; its kernels are chosen at the first one."""
    with ExitStack() as stack:
        if not matrices:
            stack.enter_context(patch.object(onednn, "is_faster_here", lambda: False))
        if not convolutions:
            off = patch.object(trace_product, "rewrite_weight_gradients", lambda _: None)
            stack.enter_context(off)
        run = prepare_hessian(case, "traced-split")
        for _ in range(2):
            run.seconds()
    return run


STUDY = Study(
    "Libraries",
    "A traced product by the kernels that torch would choose, in milliseconds; the share of that "
    "with large matrix products by oneDNN where that is faster here, and with the gradients of "
    "convolutions' weights in another form as well; relative errors of the first and the last.",
    ("model", "torch's ms", "matrices", "and convolutions", "error before", "error after"),
    ("small-autoencoder", "deep-autoencoder", "gpt", "convnet", "resnet18"),
    rows,
)
