"""AdamW's best learning rate and batch size on the digits autoencoder, 2,000 epochs each."""

from __future__ import annotations

from itertools import product

from hesse.report.digits import digits
from hesse.report.training import train_adamw

RATES = (3e-3, 5e-3, 1e-2)
BATCHES = (100, 200)


def main(epochs: int = 2000, seed: int = 0) -> None:
    """Print the training error of every setting, and the best."""
    pixels, _ = digits()
    results = {}
    print("| batch | learning rate | training error | seconds |\n|--:|--:|--:|--:|")
    for batch_size, lr in product(BATCHES, RATES):
        curve = train_adamw(pixels, seed, epochs, lambda _: None, lr=lr, batch_size=batch_size)
        results[batch_size, lr] = curve.errors[-1]
        print(
            f"| {batch_size} | {lr:g} | {curve.errors[-1]:.3f} | {curve.seconds[-1]:.1f} |",
            flush=True,
        )
    (batch_size, lr), error = min(results.items(), key=lambda item: item[1])
    print(f"\nBest: batch {batch_size}, learning rate {lr:g}: {error:.3f}.")
