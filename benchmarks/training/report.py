"""The table and the picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.training.run import Clock, History
from benchmarks.training.task import Task

Runs = dict[tuple[str, str, int], History]
"""By task, rival and seed."""


def write(
    path: Path,
    tasks: Sequence[Task],
    runs: Runs,
    thresholds: Sequence[float] = (),
    clock: Clock = "wall",
) -> None:
    """Print the table, and write it and the picture to `path` with their endings."""
    text = table(tasks, runs, thresholds, clock)
    print(text)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(path.with_suffix(".png"), tasks, runs, clock)


def table(
    tasks: Sequence[Task], runs: Runs, thresholds: Sequence[float] = (), clock: Clock = "wall"
) -> str:
    """One row for each run: its last error, and the seconds to every threshold."""
    head = ["task", "optimiser", "seed", "error", "steps", "seconds", "CPU seconds"]
    head += [f"seconds to {threshold:g}" for threshold in thresholds]
    lines = [_line(head), _line(["---"] * 2 + ["--:"] * (len(head) - 2))]
    known = {task.name: task for task in tasks}
    for (name, rival, seed), history in runs.items():
        seconds, cpu_seconds, steps, error = history.rows[-1]
        solved = " (solved)" if error < known[name].solved else ""
        row = [name, rival, str(seed), f"{error:.4f}{solved}", str(steps)]
        row += [f"{seconds:.1f}", f"{cpu_seconds:.1f}"]
        lines.append(_line(row + [_first(history, each, clock) for each in thresholds]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _first(history: History, threshold: float, clock: Clock) -> str:
    reached = (row[_column(clock)] for row in history.rows if row[3] <= threshold)
    found = next(reached, None)
    return "never" if found is None else f"{found:.1f}"


def _column(clock: Clock) -> int:
    return 0 if clock == "wall" else 1


def plot(path: Path, tasks: Sequence[Task], runs: Runs, clock: Clock = "wall") -> None:
    """A panel for each task, the errors against seconds; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False, layout="constrained"
    )
    rivals = list(dict.fromkeys(rival for _, rival, _ in runs))
    for axis, task in zip(axes[0], tasks, strict=True):
        for (name, rival, seed), history in runs.items():
            if name != task.name:
                continue
            colour, first = f"C{rivals.index(rival)}", seed == min(s for _, _, s in runs)
            xs = [row[_column(clock)] for row in history.rows]
            ys = [row[3] for row in history.rows]
            axis.plot(xs, ys, color=colour, alpha=0.8, label=rival if first else None)
        axis.set(title=task.name, xlabel=f"seconds ({clock})", ylabel=task.error_name, yscale="log")
        axis.grid(visible=True, which="both", alpha=0.3)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)
