"""HessianFree, AdamW and L-BFGS on the digits autoencoder over several seeds."""

from __future__ import annotations

from hesse.report.digits import digits
from hesse.report.training import train_adamw, train_hessian_free, train_lbfgs


def main(seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Print the table of the demonstration, one row for every seed and optimiser."""
    pixels, _ = digits()
    print("| seed | optimiser | error | seconds | gradients | share of AdamW's time to its error |")
    print("|--:|---|--:|--:|--:|--:|")
    for seed in seeds:
        adamw = train_adamw(pixels, seed, 2000, lambda _: None)
        others = [
            train_hessian_free(pixels, seed, 150, lambda _: None),
            train_lbfgs(pixels, seed, 3000, lambda _: None),
        ]
        for curve in (adamw, *others):
            reached = curve.seconds_to(adamw.errors[-1])
            share = "never" if reached is None else f"{reached / adamw.seconds[-1]:.2f}"
            print(
                f"| {seed} | {curve.name} | {curve.errors[-1]:.3f} | {curve.seconds[-1]:.1f} "
                f"| {curve.gradients[-1]:.0f} | {share} |",
                flush=True,
            )
