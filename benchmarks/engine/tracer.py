"""Hesse's tracer against `make_fx` of torch, on the same product by double backward."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from benchmarks.case import Case
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.models import MODELS
from hesse.ad.evaluate import twice_differentiable
from hesse.tracing.functionalize import trace


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row: the product as it is, then every trace twice."""
    case = Case.of(MODELS[model]())
    leaves, v = case.leaves(), list(case.tangents.values())

    def product(leaves: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        with twice_differentiable():
            gradient = torch.autograd.grad(case.value(leaves), leaves, create_graph=True)
            return list(torch.autograd.grad(gradient, leaves, v))

    product(leaves, v)
    plain, _ = _timed(lambda: product(leaves, v))
    traces = [_timed(lambda: trace(lambda: product(leaves, v), [*leaves, *v])) for _ in range(2)]
    graphs = [_timed(lambda: make_fx(product)(leaves, v)) for _ in range(2)]
    seconds = [plain, *(s for s, _ in traces), *(s for s, _ in graphs)]
    return [[model, len(traces[0][1].nodes), *seconds]]


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


STUDY = Study(
    "Tracer",
    "Seconds of one eager product, of tracing it by Hesse, the run included, and by "
    "`torch.fx.experimental.proxy_tensor.make_fx`; every trace twice.",
    ("model", "nodes", "product", "Hesse", "again", "make_fx", "again "),
    ("gpt", "lstm"),
    rows,
)
