"""Products in units of the gradient, for every model and subject, as a picture."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Measurement
from benchmarks.summary import REFERENCE

PANELS = {"hessian": "Hessian-vector product", "ggn": "Gauss-Newton product"}
COLOURS = {
    "hesse": "tab:red",
    "curvlinops": "tab:blue",
    "jax": "tab:green",
    "torch": "tab:orange",
    "torch.func": "tab:purple",
    "torch.compile": "tab:brown",
    "pyhessian": "tab:gray",
    "backpack": "tab:olive",
}
MARKERS = "os^Dv<>PX*"


def plot(path: Path, measurements: list[Measurement]) -> None:
    """One panel for each product of one vector; needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    models = list(dict.fromkeys(m.model for m in measurements))
    figure, axes = plt.subplots(
        len(PANELS), 1, figsize=(7 + 0.8 * len(models), 9), sharex=True, layout="constrained"
    )
    for axis, (quantity, title) in zip(axes, PANELS.items(), strict=True):
        ours = [m for m in measurements if m.subject.quantity == quantity and m.valid]
        _panel(axis, [m for m in ours if m.subject.vectors == 1], models, _gradients(measurements))
        axis.set(title=title, ylabel="gradients", yscale="log")
        axis.grid(visible=True, which="both", axis="y", alpha=0.3)
        axis.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[-1].set_xticks(range(len(models)), models, rotation=30, ha="right")
    axes[-1].set_xlim(-0.5, len(models) - 0.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis, measurements: list[Measurement], models: list[str], gradients: dict) -> None:
    names = list(dict.fromkeys(m.subject.name for m in measurements))
    drawn = dict.fromkeys(COLOURS, 0)
    for name in names:
        ours = [m for m in measurements if m.subject.name == name and m.model in gradients]
        library = ours[0].subject.library if ours else "torch"
        marker = MARKERS[drawn[library] % len(MARKERS)]
        drawn[library] += 1
        places = [models.index(m.model) for m in ours]
        ratios = [m.median / gradients[m.model] for m in ours]
        axis.plot(places, ratios, marker, color=COLOURS[library], label=name, alpha=0.8)


def _gradients(measurements: list[Measurement]) -> dict[str, float]:
    return {m.model: m.median for m in measurements if m.subject.name == REFERENCE}
