# SPDX-License-Identifier: Apache-2.0
"""Performance profiles: on which part of the problems is a solver within a factor of the best?

References: Dolan & Moré 2002, doi:10.1007/s101070100263; Moré & Wild 2009, doi:10.1137/080724083
(the test of a value).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

Runs = dict[tuple[str, str], dict[str, Any]]

TOLERANCES = (1e-3, 1e-6, 1e-9)
MEASURES = {"cost": 1, "products": 2, "seconds": 3}
"""What a run took, and its place in a step of the path."""


def minima(runs: Runs) -> dict[str, list[float]]:
    """problem -> the values of the minima at which solvers ended, ascending."""
    found: dict[str, list[float]] = {}
    for (_, problem), run in runs.items():
        if run["verdict"]["kind"] == "minimum":
            found.setdefault(problem, []).append(run["verdict"]["value"])
    return {problem: sorted(values) for problem, values in found.items()}


def taken(run: dict[str, Any], values: list[float], tolerance: float, measure: str) -> float:
    """What a run took until f - f* <= tolerance (f(x0) - f*); infinite if it never was.

    f* is the value of the highest minimum that is not above the run's least value, by more than
    the tolerance: a solver may end in another minimum than the others.
    """
    if not run["path"] or not values:
        return math.inf
    start, least = run["path"][0][0], run["path"][-1][0]
    reached = [v for v in values if least - v <= tolerance * (start - v) and v <= start]
    if not reached:
        return math.inf
    target = max(reached)
    bound = target + tolerance * (start - target)
    for step in run["path"]:
        if step[0] <= bound:
            return float(step[MEASURES[measure]])
    return math.inf


def table(runs: Runs, tolerance: float, measure: str) -> tuple[list[str], list[str], np.ndarray]:
    """The solvers, the problems, and what each took."""
    solvers = list(dict.fromkeys(solver for solver, _ in runs))
    problems = list(dict.fromkeys(problem for _, problem in runs))
    known = minima(runs)
    entries = [
        [
            taken(runs[s, p], known.get(p, []), tolerance, measure) if (s, p) in runs else math.inf
            for p in problems
        ]
        for s in solvers
    ]
    return solvers, problems, np.array(entries)


def curves(times: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """For each solver the part of the problems that it solves within each factor of the best."""
    floor = 1e-9
    best = np.maximum(times.min(axis=0), floor)
    known = np.isfinite(best)
    ratios = np.maximum(times[:, known], floor) / best[known]
    return (ratios[:, :, None] <= factors[None, None, :]).sum(axis=1) / times.shape[1]


def draw(runs: Runs, path: Path) -> None:
    """A row of three panels by gradients, and one by seconds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    factors = np.geomspace(1, 64, 200)
    figure, axes = plt.subplots(2, len(TOLERANCES), figsize=(15, 9), sharey=True)
    for row, measure in zip(axes, ("cost", "seconds"), strict=True):
        for axis, tolerance in zip(row, TOLERANCES, strict=True):
            solvers, _, times = table(runs, tolerance, measure)
            for solver, curve in zip(solvers, curves(times, factors), strict=True):
                style = "-" if solver.startswith("hesse") else "--"
                width = 2.5 if solver == "hesse auto" else 1.0
                axis.step(factors, curve, style, lw=width, label=solver, where="post")
            axis.set(xscale="log", title=f"{measure}, {tolerance:.0e}", xlabel="factor of the best")
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("part of the problems")
    axes[0, -1].legend(fontsize=6, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
