"""What the first product by `traced-split` costs beyond a product: recording the programs."""

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

RECORDINGS = 3
"""Operators that are made anew, one after the other; medians are kept."""

PRODUCTS = 5
"""That a recording takes to run and to check what it recorded."""


def rows(model: str, settings: Settings) -> list[list[Cell]]:
    """One row: sizes, and seconds."""
    case = Case.of(MODELS[model]())
    operators, recordings, products = zip(*(_trial(case) for _ in range(RECORDINGS)), strict=True)
    seconds, product = statistics.median(recordings), statistics.median(products)
    nodes, plan = _nodes(case), operators[0].plan
    return [
        [
            *(model, nodes, plan.point_operations, plan.direction_operations, 1e3 * product),
            *(seconds, seconds / product, 1e3 * (seconds - PRODUCTS * product) / nodes),
        ]
    ]


def _trial(case: Case) -> tuple[CurvatureOperator, float, float]:
    """A fresh operator, the seconds of its recording, and of a later product."""
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
    "Recording",
    "The first product by `traced-split` less a later one, in seconds and in later ones; `ms a "
    f"node` is what it takes beyond {PRODUCTS} products, for every node of the graph of f. "
    f"Medians of {RECORDINGS} operators.",
    (
        *("model", "nodes", "operations at a point", "of a product", "product ms"),
        *("recording s", "in products", "ms a node"),
    ),
    tuple(MODELS),
    rows,
)
