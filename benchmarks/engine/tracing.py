"""What the first product by `traced-split` costs beyond a product: tracing the programs."""

from __future__ import annotations

import statistics

import hesse
from benchmarks.case import Case
from benchmarks.engine.study import Cell, Settings, Study
from benchmarks.models import MODELS
from benchmarks.subjects.subject import InProcess, flat
from hesse.ad.double_backward import twice_differentiable
from hesse.ad.graph_nodes import graph_nodes
from hesse.curvature.operator import CurvatureOperator

TRACES = 3
"""Operators that are made one after the other; medians are kept."""

PRODUCTS = 5
"""Products that tracing takes to run f and to validate the program."""


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row: sizes, and seconds."""
    case = Case.of(MODELS[model]())
    operators, traces, products = zip(*(_trial(case) for _ in range(TRACES)), strict=True)
    seconds, product = statistics.median(traces), statistics.median(products)
    nodes, plan = _nodes(case), operators[0].plan
    return [
        [
            *(model, nodes, plan.primal_operations, plan.tangent_operations, 1e3 * product),
            *(seconds, seconds / product, 1e3 * (seconds - PRODUCTS * product) / nodes),
        ]
    ]


def _trial(case: Case) -> tuple[CurvatureOperator, float, float]:
    """A fresh operator, the seconds of tracing, and of a later product."""
    problem = case.problem
    H = hesse.hessian_operator(problem.f, problem.params, mode="traced-split")
    run = InProcess(lambda: H @ case.v, flat)
    first = run.seconds()
    later = statistics.median(run.seconds() for _ in range(3))
    return H, first - later, later


def _nodes(case: Case) -> int:
    """Of the graph of f."""
    with twice_differentiable():
        return sum(1 for _ in graph_nodes(case.value(case.leaves())))


STUDY = Study(
    "Tracing",
    "The first product by `traced-split` less a later one, in seconds and in later ones; `ms a "
    f"node` is what it takes beyond {PRODUCTS} products, for every node of the graph of f. "
    f"Medians of {TRACES} operators.",
    (
        *("model", "nodes", "primal operations", "tangent operations", "product ms"),
        *("tracing s", "in products", "ms a node"),
    ),
    tuple(MODELS),
    rows,
)
