"""Layer norm composed of elementary operations, as Hesse differentiates it, against torch's own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from benchmarks.case import Case
from benchmarks.engine.study import Cell, Settings, Study, peak, ratio
from benchmarks.models import MODELS
from benchmarks.subjects.subject import InProcess, Run, flat_leaves
from hesse.ad.torch_calls import TorchCalls


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row."""
    case = Case.of(MODELS[model]())
    sizes = [peak(lambda how=how: _run(case, how)) / 1e6 for how in (nullcontext(), TorchCalls())]
    runs = {"fused": _run(case, nullcontext()), "composed": _run(case, TorchCalls())}
    times = settings.measure(case, runs)
    fused, composed = times["fused"], times["composed"]
    seconds = [1e3 * fused.median, 1e3 * composed.median, ratio(composed, fused)]
    return [[model, *seconds, *sizes]]


def _run(case: Case, how: AbstractContextManager) -> Run:
    """The graph of the gradient kept, by plain torch."""
    leaves, v = case.leaves(), list(case.tangents.values())
    with case.differentiable_kernels(), how:
        gradient = torch.autograd.grad(case.value(leaves), leaves, create_graph=True)
    return InProcess(
        lambda: torch.autograd.grad(gradient, leaves, v, retain_graph=True), flat_leaves
    )


STUDY = Study(
    "Layer norm",
    "A product by a kept graph in plain torch, with its fused layer norm and with the composed one "
    "that Hesse uses: milliseconds, and MB of the graph and the product.",
    ("model", "fused ms", "composed ms", "composed / fused", "fused MB", "composed MB"),
    ("gpt",),
    rows,
)
