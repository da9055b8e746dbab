"""Data of eight batches: products by default and with `memory_budget="none"`, in gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch

import hesse
from benchmarks.case import Case
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.models import MODELS
from benchmarks.subjects.subject import InProcess, Run, flat, flat_leaves

BATCHES = 8
GRADIENT = "gradient"
OPERATORS = {"hessian": hesse.hessian_operator, "ggn": hesse.ggn_operator}
BUDGETS = {"default": None, "none": "none"}

PRODUCTS = 1000
"""That are announced, so that products are traced at once."""


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row for each matrix and budget."""
    case = Case.of(MODELS[model]())
    operators = {
        (quantity, budget): _operator(make, case, given)
        for quantity, make in OPERATORS.items()
        for budget, given in BUDGETS.items()
    }
    runs = {" ".join(key): _run(case, A) for key, A in operators.items()}
    quantities = {" ".join(key): key[0] for key in operators}
    runs[GRADIENT] = _gradient(case)
    times = settings.measure(case, runs, quantities | {GRADIENT: "gradient"})
    gradient = times[GRADIENT].median
    return [
        [
            *(model, quantity, budget, 1e3 * gradient, 1e3 * mine.median, mine.median / gradient),
            *(f"{A.plan.held.kept} of {A.plan.held.total}", A.mode, f"{mine.error:.0e}"),
        ]
        for (quantity, budget), A in operators.items()
        for mine in [times[f"{quantity} {budget}"]]
    ]


def _operator(make: Callable, case: Case, budget: str | None) -> hesse.CurvatureOperator:
    problem = case.problem
    A = make(problem.risk(BATCHES), problem.params, memory_budget=budget)
    A.announce(PRODUCTS)
    return A


def _run(case: Case, A: hesse.CurvatureOperator) -> Run:
    return InProcess(lambda: A @ case.v, flat)


def _gradient(case: Case) -> Run:
    """The gradient of the same batches, by plain torch."""
    parts, leaves = case.problem.parts, case.leaves()
    assert parts is not None
    batches = parts.batches(BATCHES)
    names, total = list(case.problem.params), len(parts.inputs)

    def gradient() -> list[torch.Tensor]:
        gradients = []
        for inputs, targets in batches:
            params = dict(zip(names, leaves, strict=True))
            outputs = torch.func.functional_call(parts.model, params, (inputs,))
            value = parts.loss(outputs, targets) * (len(inputs) / total)
            gradients.append(torch.autograd.grad(value, leaves))
        return [sum(leaf[1:], start=leaf[0]) for leaf in zip(*gradients, strict=True)]

    return InProcess(gradient, flat_leaves)


STUDY = Study(
    "Batches",
    f"The data in {BATCHES} batches. The time of a product over that of the gradient of the same "
    "batches, by default (residuals of as many batches are kept as memory allows) and with "
    '`memory_budget="none"`, after the programs are traced.',
    (
        *("model", "product", "budget", "gradient ms", "ms", "gradients", "batches kept", "mode"),
        "error",
    ),
    ("small-autoencoder", "deep-autoencoder", "gpt", "convnet"),
    rows,
)
