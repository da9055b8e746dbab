"""`python -m benchmarks NAME [OPTIONS]`: run one benchmark; `products` if none is named."""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {
    "products": "Hesse's modes and its peers: times, errors, memory (see --help)",
    "totals": "seconds for 1 to 1000 products in a fresh process (see --help)",
    "spectra": "eigenvalues, trace, density, diagonal, systems: Hesse and its peers (see --help)",
    "sparse": "sparse Hessians: set-up, colours, evaluations, asdex, Newton (see --help)",
    "engine": "budgets, precision, tracing, blocks, batches, memory (see --help)",
    "kfac": "K-FAC and EK-FAC beside curvlinops, and as preconditioners (see --help)",
    "diagonal": "exact diagonals beside BackPACK (see --help)",
    "least-squares": "least_squares beside SciPy: evaluations, Jacobians, seconds (see --help)",
    "apps": "applications of curvature: python -m benchmarks apps NAME",
    "compare": "two versions of Hesse beside each other: OLD_SRC NEW_SRC (see --help)",
    "ranks": "several processes: efficiency, memory, hessian-eigenthings (see --help)",
    "suite": "smooth problems: profiles of Hesse and its peers, resumable (see --help)",
    "bounds": "smooth problems with bounds on variables beside SciPy (see --help)",
    "methods": "the methods of minimize on a few problems: evaluations (see --help)",
    "large": "functions of 250,000 variables and more beside SciPy and GALAHAD (see --help)",
    "pinn": "differential equations by networks: least_squares on residuals (see --help)",
    "optimizers": "HessianFree, AdamW and L-BFGS on the digits autoencoder",
    "autoencoder": "deep autoencoders: HessianFree and its rivals for equal seconds (see --help)",
    "language": "a GPT of characters: HessianFree, AdamW, Muon, SOAP (see --help)",
    "recurrent": "memory tasks of recurrent networks: HessianFree beside AdamW (see --help)",
    "tune-adamw": "AdamW's best settings there",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmark with the options that follow."""
    name, *options = arguments or ["products"]
    if name not in BENCHMARKS:
        lines = [f"  {known:13} {what}" for known, what in BENCHMARKS.items()]
        print(f"No benchmark {name!r}. There are:", *lines, sep="\n", file=sys.stderr)
        return 2
    module = import_module(f"benchmarks.{name.replace('-', '_')}")
    module.main(*([options] if options else []))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
