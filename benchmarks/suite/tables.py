# SPDX-License-Identifier: Apache-2.0
"""Tables of a suite: solved and what it took; how runs ended; which claims are false."""

from __future__ import annotations

from collections import Counter

import numpy as np

from benchmarks.suite.profiles import TOLERANCES, Runs, table

_REFERENCE = "hesse auto"


def markdown(runs: Runs) -> str:
    """All tables."""
    return "\n\n".join([_solved(runs), _endings(runs), _false(runs)]) + "\n"


def _solved(runs: Runs) -> str:
    """Problems solved at each tolerance, and geometric means of ratios to the default method."""
    runs_of = Counter(solver for solver, _ in runs)
    head = "| solver | runs | " + " | ".join(
        f"solved, {t:.0e} | gradients / default | products / default | seconds / default"
        for t in TOLERANCES
    )
    rows = [head + " |", "|---|--:|" + "--:|" * (4 * len(TOLERANCES))]
    cells: dict[str, list[str]] = {}
    for tolerance in TOLERANCES:
        tables = {m: table(runs, tolerance, m) for m in ("cost", "products", "seconds")}
        solvers, _, cost = tables["cost"]
        if _REFERENCE not in solvers:
            continue
        place = solvers.index(_REFERENCE)
        for i, solver in enumerate(solvers):
            row = cells.setdefault(solver, [])
            row.append(str(int(np.isfinite(cost[i]).sum())))
            for measure, (_, _, entries) in tables.items():
                least = 1e-3 if measure == "seconds" else 1.0
                row.append(_mean_ratio(entries[i], entries[place], least))
    for solver, row in cells.items():
        rows.append(f"| {solver} | {runs_of[solver]} | {' | '.join(row)} |")
    return "\n".join(rows)


def _mean_ratio(entries: np.ndarray, others: np.ndarray, least: float) -> str:
    """The geometric mean of a / b where both solved the problem; what is below `least` is that."""
    both = np.isfinite(entries) & np.isfinite(others)
    if not both.any():
        return "-"
    a, b = np.maximum(entries[both], least), np.maximum(others[both], least)
    return f"{np.exp(np.log(a / b).mean()):.2f}"


def _endings(runs: Runs) -> str:
    """How the runs of each solver ended, by claim and verdict."""
    solvers = dict.fromkeys(solver for solver, _ in runs)
    rows = [
        "| solver | claims a minimum: is one | is none | says no: is one | is none "
        "| total, gradients | reasons of those that say no |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for solver in solvers:
        ours = [run for key, run in runs.items() if key[0] == solver]
        counts = Counter((run["claims"], run["verdict"]["kind"] == "minimum") for run in ours)
        reasons = Counter(run["message"] for run in ours if not run["claims"])
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        cells = [
            counts[c, m] for c, m in ((True, True), (True, False), (False, True), (False, False))
        ]
        cost = [max(run["cost"], 1.0) for run in ours if run["path"]]
        mean = np.exp(np.log(cost).mean()) if cost else float("nan")
        rows.append(f"| {solver} | {' | '.join(map(str, cells))} | {mean:.0f} | {said} |")
    return "\n".join(rows)


def _false(runs: Runs) -> str:
    """Where Hesse's methods and the verdict disagree."""
    lines = []
    for (solver, problem), run in runs.items():
        kind = run["verdict"]["kind"]
        if solver.startswith("hesse") and run["claims"] != (kind == "minimum"):
            lines.append(f"- {solver}, {problem}: {run['message']}, but {kind}")
    return "\n".join(lines)
