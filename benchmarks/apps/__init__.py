"""`python -m benchmarks apps NAME`: an application of curvature against the truth and its peers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

APPS = {
    "physics": "clusters: energies and modes; saddle points and responses",
    "statistics": "standard errors and profile intervals beside statsmodels",
    "influence": "influences against exact retraining: leave-one-out, groups, LDS, MNIST",
    "ntk": "tangent kernels: products by preconditioner, 10^5 x 10 rows",
    "tracker": "curvature over training: edge of stability, products, overhead",
    "laplace": "evidence, priors and predictions beside laplace-torch; intervals; a CNN on MNIST",
    "prune": "MLPNet on MNIST, 95 % sparse: one-shot, gradual, with refit",
    "implicit": "hypergradients: errors by tolerance, warm starts, TorchOpt; iMAML on sinusoids",
}


def main(arguments: Sequence[str] = ()) -> None:
    """Run the named application's benchmark with the options that follow."""
    name, *options = arguments or [""]
    if name not in APPS:
        lines = [f"  {known:12} {what}" for known, what in APPS.items()]
        print("python -m benchmarks apps NAME [OPTIONS]", *lines, sep="\n", file=sys.stderr)
        raise SystemExit(2)
    import_module(f"benchmarks.apps.{name}").main(options)
